"""The rest of the demo family: who is trained how, starting from demo-sd, and how it is shipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from diffusers import (
    ControlNetModel,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn

from deployments.training.demo.adapter import StyleAdapter, export_adapter
from deployments.training.demo.export import build_pipeline, export, export_network
from deployments.training.demo.learning.latents import Encoders
from deployments.training.demo.learning.lessons import (
    Teach,
    whole_scene,
    with_depth,
    with_edges,
    with_hole,
    with_pose,
    with_reference,
    with_regions,
    with_sizes,
)
from deployments.training.demo.learning.pupils import Denoiser, Guide, Pupil, Styled
from deployments.training.demo.models import (
    device,
    make_controlnet,
    make_inpaint_unet,
    make_scheduler,
    make_sd21_scheduler,
    make_sd21_unet,
    make_xl_scheduler,
    make_xl_unet,
)
from deployments.training.demo.slim import start_from
from deployments.training.demo.stages.distil_text import cross_bridge, distil_both_texts, distil_text
from deployments.training.demo.stages.train_denoiser import Course
from deployments.training.demo.stages.train_image_encoder import train_image_encoder


@dataclass(frozen=True)
class Start:
    """What demo-sd gives to the others, and the folder that a run keeps its files in."""

    encoders: Encoders
    unet: UNet2DConditionModel
    folder: Path


@dataclass(frozen=True)
class Member:
    """`begin` makes the pupil, with what it can take over from demo-sd, and the encoders that it learns with; `ship`
    writes the trained pupil to a folder; `minutes` is what its training takes on two cores.
    """

    begin: Callable[[Start], tuple[Pupil, Encoders]]
    ship: Callable[[Pupil, Encoders, Path], None]
    course: Course
    minutes: float


def _begin_inpaint(start: Start) -> tuple[Pupil, Encoders]:
    unet = make_inpaint_unet().to(device())
    start_from(unet, start.unet)
    return Denoiser(unet), start.encoders


def _begin_sd21(start: Start) -> tuple[Pupil, Encoders]:
    theirs = start.encoders
    text, bridge = distil_text(start.folder / "text.pt", theirs.text, theirs.tokenizer)
    unet = make_sd21_unet().to(device())
    start_from(unet, start.unet)
    cross_bridge(unet, start.unet, bridge)
    return Denoiser(unet), Encoders(theirs.vae, text, theirs.tokenizer)


def _begin_xl(start: Start) -> tuple[Pupil, Encoders]:
    theirs = start.encoders
    first, second, bridge = distil_both_texts(start.folder / "text.pt", theirs.text, theirs.tokenizer)
    unet = make_xl_unet().to(device())
    start_from(unet, start.unet)
    cross_bridge(unet, start.unet, bridge)
    # The pooled caption and the sizes have no say at first.
    nn.init.zeros_(unet.add_embedding.linear_2.weight)
    nn.init.zeros_(unet.add_embedding.linear_2.bias)
    return Denoiser(unet), Encoders(theirs.vae, first, theirs.tokenizer, second=second)


def _begin_controlnet(start: Start) -> tuple[Pupil, Encoders]:
    controlnet = make_controlnet(start.unet).to(device())
    start_from(controlnet, start.unet)
    # Zero twice in a row, here and in the outputs, learns slowly; once is enough to begin without any say.
    nn.init.kaiming_normal_(controlnet.controlnet_cond_embedding.conv_out.weight)
    return Guide(controlnet, start.unet), start.encoders


def _begin_style(start: Start) -> tuple[Pupil, Encoders]:
    theirs = start.encoders
    reader, projection = train_image_encoder(start.folder / "image_encoder.pt", theirs.text, theirs.tokenizer)
    adapter = StyleAdapter(start.unet, projection).to(device())
    return Styled(adapter, start.unet), Encoders(theirs.vae, theirs.text, theirs.tokenizer, reader)


def _ship_inpaint(pupil: Pupil, encoders: Encoders, folder: Path) -> None:
    pipeline = build_pipeline(encoders, pupil.network, make_scheduler(), StableDiffusionInpaintPipeline)
    export(pipeline, folder, borrowed=("vae", "text_encoder", "tokenizer"))


def _ship_sd21(pupil: Pupil, encoders: Encoders, folder: Path) -> None:
    pipeline = build_pipeline(encoders, pupil.network, make_sd21_scheduler())
    export(pipeline, folder, borrowed=("vae", "tokenizer"))


def _ship_xl(pupil: Pupil, encoders: Encoders, folder: Path) -> None:
    pipeline = StableDiffusionXLPipeline(
        vae=encoders.vae,
        text_encoder=encoders.text,
        text_encoder_2=encoders.second,
        tokenizer=encoders.tokenizer,
        tokenizer_2=encoders.tokenizer,
        unet=pupil.network,
        scheduler=make_xl_scheduler(),
        add_watermarker=False,
    )
    export(pipeline, folder, borrowed=("vae", "tokenizer", "tokenizer_2"))


def _ship_controlnet(pupil: Pupil, encoders: Encoders, folder: Path) -> None:
    assert isinstance(pupil.network, ControlNetModel)
    export_network(pupil.network, folder)


def _ship_style(pupil: Pupil, encoders: Encoders, folder: Path) -> None:
    assert isinstance(pupil.network, StyleAdapter)
    assert encoders.reader is not None
    export_adapter(pupil.network, encoders.reader, folder)


_GROWING: Final = ((0.5, (0.7, 0.3, 0.0)), (1.0, (0.1, 0.8, 0.1)))
_GROWN: Final = ((0.4, (0.4, 0.6, 0.0)), (1.0, (0.1, 0.85, 0.05)))
_GUIDING: Final = ((0.5, (0.8, 0.2, 0.0)), (1.0, (0.2, 0.8, 0.0)))


def _guided(teach: Teach, minutes: float = 16) -> Member:
    # Measured over 70 seconds each: at a quarter of this rate nothing of the hint is heard yet. It is heard where noise
    # is high, since later the latents themselves say what is where.
    course = Course(4e-3, _GUIDING, teach, high_share=0.85)
    return Member(_begin_controlnet, _ship_controlnet, course, minutes)


FAMILY: Final[Mapping[str, Member]] = {
    "demo-sd21": Member(_begin_sd21, _ship_sd21, Course(1e-3, _GROWING, whole_scene, "v_prediction"), minutes=60),
    "demo-sdxl": Member(_begin_xl, _ship_xl, Course(5e-4, _GROWN, with_sizes), minutes=30),
    "demo-inpaint": Member(_begin_inpaint, _ship_inpaint, Course(1e-3, _GROWING, with_hole), minutes=22),
    "demo-style": Member(
        _begin_style, _ship_style, Course(2e-3, _GUIDING, with_reference, high_share=0.85), minutes=15
    ),
    "controlnet-canny": _guided(with_edges, minutes=50),
    "controlnet-depth": _guided(with_depth),
    "controlnet-pose": _guided(with_pose),
    "controlnet-segmentation": _guided(with_regions),
}
