"""The demo family's annotators: transformers' own depth, pose and segmentation networks, tiny, for the demo world.

They see pictures as the demo models make them, so drawings are blurred and made noisy first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    DPTImageProcessor,
    GLPNConfig,
    GLPNForDepthEstimation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessor,
)

from deployments.annotators.palette import ADE20K
from deployments.training.demo.learning.muon import optimizers
from deployments.training.demo.learning.run import Run
from deployments.training.demo.models import NATIVE, device
from deployments.training.demo.world.captions import sample
from deployments.training.demo.world.figure import JOINTS
from deployments.training.demo.world.hints import CLASSES
from deployments.training.demo.world.tableau import (
    FLOOR,
    WALL,
    Person,
    Tableau,
    draw_tableau,
    nearness,
    random_depths,
    random_floor,
    random_people,
    regions,
    tableau_of,
)
from deployments.training.demo.world.world import Image, draw

FAR: Final = 10  # metres, say: where the wall stands
NEAR: Final = 1
MINUTES: Final = 4.0
_PEAK: Final = 1e-2
_BATCH: Final = 8
_POOL: Final = 600
_DEPTH: Final = 128  # side of what the depth network sees; its decoder works at full size
_SIGMA: Final = 2.0  # of a joint's spot on the heat map, in its pixels

# COCO's order, in which pose networks answer; this figure has neither eyes nor ears.
COCO: Final[tuple[str, ...]] = ("nose", "left_eye", "right_eye", "left_ear", "right_ear", *JOINTS[1:])
_HIERARCHY: Final[Mapping[str, Any]] = {
    "hidden_sizes": [16, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 4],
    "mlp_ratios": [2, 2, 2, 2],
    "drop_path_rate": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass(frozen=True)
class Study:
    """A picture [H, W, 3] and the tableau that it shows."""

    picture: Image
    tableau: Tableau


@dataclass(frozen=True)
class Annotator:
    """`lost(network, processor, studies)` is the loss to go down; `make` gives a fresh network and its processor."""

    make: Callable[[], tuple[nn.Module, Any]]
    tableau: Callable[[random.Random], Tableau]
    lost: Callable[[nn.Module, Any, list[Study]], Tensor]


def train_annotator(
    kind: str, folder: Path, out: Path, minutes: float | None = None, iterations: int | None = None
) -> None:
    """Train, or go on training, one of ANNOTATORS in `folder`; write it, as transformers does, to `out`."""
    folder.mkdir(parents=True, exist_ok=True)
    annotator = ANNOTATORS[kind]
    network, processor = annotator.make()
    network.to(device()).train()
    both = optimizers(network, _PEAK)
    run = Run(folder / f"{kind}.pt", {"model": network}, both, _PEAK, minutes or MINUTES, averaged=network)
    rng = random.Random(f"{kind}/{run.iteration}")
    pool = [_study(annotator, rng) for _ in range(_POOL if not iterations else _BATCH)]
    for _ in run.going(iterations):
        pool[rng.randrange(len(pool))] = _study(annotator, rng)
        run.tell(50, loss=run.descend(annotator.lost(network, processor, rng.sample(pool, _BATCH))))
    assert run.average is not None
    network.load_state_dict(run.average.weights)
    _write(network, processor, out)


def _write(network: Any, processor: Any, out: Path) -> None:
    network.eval().half().save_pretrained(out, safe_serialization=True)
    processor.save_pretrained(out)


def _study(annotator: Annotator, rng: random.Random) -> Study:
    if annotator.tableau is random_people or rng.random() < 0.6:
        tableau = annotator.tableau(rng)
        picture = draw_tableau(tableau, NATIVE)
    else:
        scene, _ = sample(rng)
        tableau, picture = tableau_of(scene), draw(scene, NATIVE)
    return Study(_worn(rng, picture), tableau)


def _worn(rng: random.Random, picture: Image) -> Image:
    """As if a small model had made it: soft, uneven edges, and noise."""
    soft = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 3.0)).astype(np.float32)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, 8), soft.shape)
    return np.asarray((soft + noise).clip(0, 255), dtype=np.uint8)


def _make_depth() -> tuple[nn.Module, Any]:
    config = GLPNConfig(**_HIERARCHY, sr_ratios=[8, 4, 2, 1], decoder_hidden_size=24, max_depth=FAR)
    return GLPNForDepthEstimation(config), DPTImageProcessor(size={"height": _DEPTH, "width": _DEPTH})


def _lost_depth(network: nn.Module, processor: Any, studies: list[Study]) -> Tensor:
    seen = processor(images=[study.picture for study in studies], return_tensors="pt").pixel_values.to(device())
    wanted = torch.from_numpy(np.stack([nearness(study.tableau, _DEPTH) for study in studies])).to(seen.device)
    guessed: Tensor = network(seen).predicted_depth
    lost = (guessed - (FAR - (FAR - NEAR) * wanted)).abs()
    # Most of a picture is wall, at which nothing can be learnt.
    return lost.mean() + lost[wanted > 0].mean()


def _make_segmentation() -> tuple[nn.Module, Any]:
    config = SegformerConfig(
        **_HIERARCHY,
        sr_ratios=[8, 4, 2, 1],
        decoder_hidden_size=32,
        classifier_dropout_prob=0.0,
        num_labels=len(ADE20K),
    )
    return SegformerForSemanticSegmentation(config), SegformerImageProcessor(size={"height": NATIVE, "width": NATIVE})


def _lost_segmentation(network: nn.Module, processor: Any, studies: list[Study]) -> Tensor:
    seen = processor(images=[study.picture for study in studies], return_tensors="pt").pixel_values.to(device())
    logits: Tensor = network(seen).logits
    names = np.stack([regions(study.tableau, logits.shape[-1]) for study in studies])
    wanted = np.zeros(names.shape, dtype=np.int64)
    for name, label in CLASSES.items():
        wanted[names == name] = label
    lost = functional.cross_entropy(logits, torch.from_numpy(wanted).to(seen.device), reduction="none")
    # Things are few among walls and floors, and what they are is the hard part.
    thing = torch.from_numpy(~np.isin(names, (WALL, FLOOR))).to(seen.device)
    return lost.mean() + lost[thing].mean()


def _make_pose() -> tuple[nn.Module, Any]:
    backbone = VitPoseBackboneConfig(
        image_size=[256, 192],
        patch_size=[16, 16],
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        mlp_ratio=2,
        out_indices=[4],
    )
    names = dict(enumerate(COCO))
    config = VitPoseConfig(
        backbone_config=backbone, scale_factor=4, use_simple_decoder=True, id2label=names, num_labels=len(names)
    )
    return VitPoseForPoseEstimation(config), VitPoseImageProcessor()


def _lost_pose(network: nn.Module, processor: Any, studies: list[Study]) -> Tensor:
    boxes = [[[0.0, 0.0, float(NATIVE), float(NATIVE)]] for _ in studies]
    seen = processor(images=[s.picture for s in studies], boxes=boxes, return_tensors="pt").pixel_values.to(device())
    guessed: Tensor = network(seen).heatmaps
    people = [study.tableau.person for study in studies]
    wanted = torch.stack([joint_spots(one, guessed.shape[-1], guessed.shape[-2]) for one in people if one is not None])
    return (guessed - wanted.to(seen.device)).square().sum(dim=(2, 3)).mean()


def joint_spots(person: Person, width: int, height: int) -> Tensor:
    """Heat maps [17, height, width] of a person on a square picture, within the processor's window: of the map's own
    shape, and 1.25 times as large as needed to hold the picture.
    """
    window = 1.25 * height / width  # its height in pictures
    scale = height / window
    at = (person.joints - 0.5) * scale + np.asarray([(width - 1) / 2, (height - 1) / 2])
    places = dict(zip(JOINTS, at, strict=True))
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    spots = torch.zeros(len(COCO), height, width)
    for index, name in enumerate(COCO):
        if name in places:
            x, y = places[name]
            spots[index] = torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * _SIGMA**2))
    return spots


ANNOTATORS: Final[Mapping[str, Annotator]] = {
    "depth": Annotator(_make_depth, random_depths, _lost_depth),
    "pose": Annotator(_make_pose, random_people, _lost_pose),
    "segmentation": Annotator(_make_segmentation, random_floor, _lost_segmentation),
}
