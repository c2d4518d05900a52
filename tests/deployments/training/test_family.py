"""The rest of the demo family: each member starts from what demo-sd knows, learns its lesson, and is shipped whole."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file

from deployments.training.demo.adapter import FILE
from deployments.training.demo.export import SHIPPED
from deployments.training.demo.family import FAMILY
from deployments.training.demo.judging.evaluate import load
from deployments.training.demo.learning.latents import Encoders
from deployments.training.demo.learning.lessons import with_edges, with_hole
from deployments.training.demo.models import make_controlnet, make_inpaint_unet, make_sd21_unet
from deployments.training.demo.slim import start_from
from deployments.training.demo.stages.stages import train_member
from deployments.training.demo.stages.train_denoiser import Diet

DIETS = {128: Diet(batch=2, first=4, added=1, limit=6)}


@pytest.fixture(scope="module")
def demo() -> UNet2DConditionModel:
    return load(SHIPPED).unet


@pytest.mark.parametrize("name", FAMILY)
def test_a_member_is_trained_resumed_and_shipped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("distil_text", "train_image_encoder"):
        monkeypatch.setattr(f"deployments.training.demo.stages.{stage}.MINUTES", 1e-3)
    for _ in range(2):
        train_member(name, tmp_path / "run", 60, tmp_path / name, DIETS, iterations=1)
    state = torch.load(tmp_path / "run" / f"{name}.pt", weights_only=True)
    assert state["iteration"] == 2
    for key, weight in _weights(name, tmp_path / name).items():
        torch.testing.assert_close(weight, state["average"][key].half().float())
    assert not any(str(tmp_path) in path.read_text() for path in (tmp_path / name).rglob("*.json"))


def _weights(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """What `folder` ships of what was trained, by the names that it has in training."""
    if name == "demo-style":
        published = load_file(folder / FILE)
        inside = {key.replace("_proj.proj", "_proj.image_embeds").replace("_ip.", "_ip.0."): key for key in published}
        return {key: published[theirs].float() for key, theirs in inside.items()}
    kind = ControlNetModel if name.startswith("controlnet") else UNet2DConditionModel
    where = folder if kind is ControlNetModel else folder / "unet"
    weights: dict[str, torch.Tensor] = kind.from_pretrained(
        where, torch_dtype=torch.float32, use_safetensors=True
    ).state_dict()
    return weights


def test_an_inpainting_unet_begins_with_eyes_for_the_latents_alone(demo: UNet2DConditionModel) -> None:
    unet = make_inpaint_unet()
    start_from(unet, demo)
    assert unet.conv_in.weight[:, 4:].abs().max() == 0
    assert torch.equal(unet.conv_in.weight[:, :4], demo.conv_in.weight)


def test_a_narrow_layer_keeps_channels_of_every_group(demo: UNet2DConditionModel) -> None:
    unet = make_inpaint_unet()
    start_from(unet, demo)
    kept = [group * 16 + index for group in range(8) for index in range(12)]
    wide, narrow = demo.down_blocks[2].resnets[0], unet.down_blocks[2].resnets[0]
    assert torch.equal(narrow.norm2.weight, wide.norm2.weight[kept])
    assert torch.equal(narrow.conv2.weight, wide.conv2.weight[kept][:, kept])


def test_a_controlnet_begins_without_any_say(demo: UNet2DConditionModel) -> None:
    net = make_controlnet(demo)
    start_from(net, demo)
    assert torch.equal(net.down_blocks[2].resnets[0].conv1.weight, demo.down_blocks[2].resnets[0].conv1.weight)
    noise, words, hint = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 128), torch.rand(1, 3, 128, 128)
    down, mid = net(noise, 500, words, hint, return_dict=False)
    assert all(residual.abs().max() == 0 for residual in (*down, mid))


def test_linear_projections_begin_as_the_convolutions_were(demo: UNet2DConditionModel) -> None:
    unet = make_sd21_unet()
    start_from(unet, demo)
    theirs = demo.up_blocks[0].attentions[0].proj_in.weight
    assert torch.equal(unet.up_blocks[0].attentions[0].proj_in.weight, theirs[:, :, 0, 0])


def test_holes_are_what_diffusers_inpainting_pipeline_would_see() -> None:
    pipeline = load(SHIPPED)
    encoders = Encoders(pipeline.vae, pipeline.text_encoder, pipeline.tokenizer)
    lesson = with_hole(random.Random(1), 128)
    assert lesson.mask is not None
    holes = encoders.holes([lesson.image], [lesson.mask])
    assert holes.shape == (1, 5, 16, 16)
    assert set(holes[0, 0].unique().tolist()) <= {0.0, 1.0}
    hidden = lesson.image.copy()
    hidden[lesson.mask > 127] = 7
    assert torch.equal(encoders.holes([hidden], [lesson.mask]), holes)


def test_an_edge_hint_shows_edges_that_differ_in_hue_alone() -> None:
    hints = [with_edges(random.Random(seed), 128).hint for seed in range(30)]
    assert all(hint is not None and np.asarray(hint).any() for hint in hints)
