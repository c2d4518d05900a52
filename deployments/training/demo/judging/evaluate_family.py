"""Does the rest of the demo family do what it is told? Pictures for held-out captions, masks and hints, judged without
a network. demo-sd21 and demo-sdxl are evaluated as demo-sd is, see `evaluate`, and demo-style in `evaluate_style`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image as Pictures

from deployments.annotators.edges import detect_edges
from deployments.training.demo.export import SHIPPED
from deployments.training.demo.judging.evaluate import GUIDANCE, STEPS, held_out, load
from deployments.training.demo.judging.judge import judge
from deployments.training.demo.judging.judge_controls import depth_correlation, edge_f1, region_iou
from deployments.training.demo.judging.judge_pose import joints_right
from deployments.training.demo.learning.lessons import around, caption_of, hole
from deployments.training.demo.models import NATIVE, device
from deployments.training.demo.world.captions import describe
from deployments.training.demo.world.hints import depth_hint, pose_hint, segmentation_hint
from deployments.training.demo.world.silhouettes import SILHOUETTES
from deployments.training.demo.world.tableau import (
    Tableau,
    draw_tableau,
    random_depths,
    random_floor,
    random_people,
)
from deployments.training.demo.world.world import Image, draw

# What each member is held to, on average over the cases.
TARGETS: Final[Mapping[str, float]] = {
    "demo-inpaint": 0.85,
    "controlnet-canny": 0.8,
    "controlnet-depth": 0.8,
    "controlnet-pose": 0.8,
    "controlnet-segmentation": 0.8,
}
MEASURES: Final[Mapping[str, str]] = {
    "demo-inpaint": "the named product in the mask",
    "controlnet-canny": "F1 of edges within 2 pixels",
    "controlnet-depth": "rank correlation of depth",
    "controlnet-pose": "joints within 5 % of the size",
    "controlnet-segmentation": "mean IoU of regions",
}
HINTED_GUIDANCE: Final = 3.0  # stronger guidance swells what it paints, and its outlines leave the hint's
PROMISES: Final = frozenset(("product", "colour", "background"))


@dataclass(frozen=True)
class Case:
    """What a member is asked: words, a hint or a picture with a mask; `score` judges the answer, in [0, 1]."""

    text: str
    shown: Image
    score: Callable[[Image], float]
    mask: Image | None = None


@dataclass(frozen=True)
class JudgedPicture:
    """The picture [H, W, 3] that a member made for a case, and how well it did: `right` means as well as the member
    shall do on average.
    """

    case: Case
    image: Image
    score: float
    right: bool


def answers(name: str, count: int, folder: Path) -> Iterator[JudgedPicture]:
    """Picture after picture of the member `name` in `folder`, judged."""
    pipeline = _load_member(name, folder)
    rng = random.Random(f"evaluation/{name}")
    for seed in range(count):
        case = CASES[name](rng)
        image = _paint(pipeline, case, seed)
        score = case.score(image)
        yield JudgedPicture(case, image, score, score >= TARGETS[name])


def summary(name: str, done: Sequence[JudgedPicture]) -> str:
    """The result in Markdown."""
    scores = np.asarray([answer.score for answer in done])
    heads = "| member | measured | cases | mean | target | worst tenth |\n|---|---|---:|---:|---:|---:|\n"
    tenth = np.sort(scores)[: max(1, len(scores) // 10)].mean()
    row = f"| {name} | {MEASURES[name]} | {len(done)} | {scores.mean():.3f} | {TARGETS[name]} | {tenth:.3f} |"
    return heads + row


def load_sd21(folder: Path) -> StableDiffusionPipeline:
    """demo-sd21 as a pipeline of diffusers, in full precision, with the sampler that the evaluation uses."""
    start = load(SHIPPED)
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, vae=start.vae, tokenizer=start.tokenizer, dtype=torch.float32, safety_checker=None
    )
    return _ready(pipeline)


def load_xl(folder: Path) -> StableDiffusionXLPipeline:
    """demo-sdxl in the same way."""
    start = load(SHIPPED)
    parts = {"vae": start.vae, "tokenizer": start.tokenizer, "tokenizer_2": start.tokenizer}
    return _ready(
        StableDiffusionXLPipeline.from_pretrained(folder, **parts, dtype=torch.float32, add_watermarker=False)
    )


def _load_member(name: str, folder: Path) -> DiffusionPipeline:
    """A member that is shown something, with the parts that it shares with demo-sd."""
    start = load(SHIPPED)
    if name == "demo-inpaint":
        parts = {"vae": start.vae, "text_encoder": start.text_encoder, "tokenizer": start.tokenizer}
        return _ready(
            StableDiffusionInpaintPipeline.from_pretrained(folder, **parts, dtype=torch.float32, safety_checker=None)
        )
    net = ControlNetModel.from_pretrained(folder, torch_dtype=torch.float32)
    return _ready(StableDiffusionControlNetPipeline.from_pipe(start, controlnet=net))


def _ready(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device())


def _paint(pipeline: DiffusionPipeline, case: Case, seed: int) -> Image:
    options = {"image": Pictures.fromarray(case.shown)}
    if case.mask is not None:
        options["mask_image"] = Pictures.fromarray(case.mask)
    picture = pipeline(
        case.text,
        **options,
        num_inference_steps=STEPS,
        guidance_scale=HINTED_GUIDANCE if case.mask is None else GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]
    painted = np.asarray(picture, dtype=np.uint8)
    return painted if case.mask is None else np.where(case.mask[:, :, None] > 127, painted, case.shown)


def _inpainting(rng: random.Random) -> Case:
    """An ad with another product, or with none, under the mask."""
    scene, _ = held_out(1, rng.getrandbits(32))[0]
    other = replace(scene, product=rng.choice([name for name in SILHOUETTES if name != scene.product]))
    empty = rng.random() < 0.5
    shown = draw(replace(other, colour=scene.background) if empty else other, NATIVE)
    both = list(zip(around(rng, scene), around(rng, other), strict=True))
    left, top, right, bottom = (pick(pair) for pick, pair in zip((min, min, max, max), both, strict=True))

    def score(image: Image) -> float:
        verdict = judge(image)
        return float(verdict is not None and verdict.product == scene.product)

    text = describe(rng, scene, set(PROMISES))
    return Case(text, shown, score, hole((left, top, right, bottom), NATIVE))


def _edges(rng: random.Random) -> Case:
    if rng.random() < 0.5:
        scene, caption = held_out(1, rng.getrandbits(32))[0]
        hint, text = detect_edges(draw(scene, NATIVE)), caption.text
    else:
        tableau = rng.choice((random_depths, random_floor, random_people))(rng)
        hint, text = detect_edges(draw_tableau(tableau, NATIVE)), _caption(rng, tableau)
    return Case(text, hint, lambda image: edge_f1(image, hint))


def _depth(rng: random.Random) -> Case:
    tableau = random_depths(rng)
    hint = depth_hint(tableau, NATIVE)
    return Case(_caption(rng, tableau), hint, lambda image: depth_correlation(image, hint))


def _regions(rng: random.Random) -> Case:
    tableau = random_floor(rng)
    hint = segmentation_hint(tableau, NATIVE)
    return Case(_caption(rng, tableau), hint, lambda image: region_iou(image, hint))


def _pose(rng: random.Random) -> Case:
    tableau = random_people(rng)
    person = tableau.person
    assert person is not None
    return Case(_caption(rng, tableau), pose_hint(person, NATIVE), lambda image: joints_right(image, person.joints))


def _caption(rng: random.Random, tableau: Tableau) -> str:
    return caption_of(rng, tableau, PROMISES)


CASES: Final[Mapping[str, Callable[[random.Random], Case]]] = {
    "demo-inpaint": _inpainting,
    "controlnet-canny": _edges,
    "controlnet-depth": _depth,
    "controlnet-pose": _pose,
    "controlnet-segmentation": _regions,
}
