"""Checkers for tests: a tiny network of diffusers' own class, and classes that a configuration may name."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor

from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.safety import CheckerSpec, SafetyPolicy, SafetySpec, SafetyVerdict

HERE: Final = __name__

SIDE: Final = 32


def tiny_checker(seed: int = 4, *, threshold: float = 0.2) -> StableDiffusionSafetyChecker:
    """diffusers' own safety checker with a tiny vision tower; the concepts' thresholds are `threshold`."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 8,
    }
    config = CLIPConfig(vision_config=vision, projection_dim=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        checker = StableDiffusionSafetyChecker(config).eval()
        for module in checker.modules():
            # At its initial scale every picture looks the same to it.
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.data.mul_(8.0)
        for embeds in (checker.concept_embeds, checker.special_care_embeds):
            embeds.data.normal_()
    checker.concept_embeds_weights.data.fill_(threshold)
    checker.special_care_embeds_weights.data.fill_(0.3)
    return checker


def tiny_processor() -> CLIPImageProcessor:
    """The preparation that Stable Diffusion's own file asks for, for a smaller vision tower."""
    size = {"height": SIDE, "width": SIDE}
    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size, resample=3)


def save_tiny_checker(folder: Path, *, seed: int = 4, threshold: float = 0.2) -> Path:
    """Writes both parts to `folder` as Stable Diffusion's repositories have them, and returns `folder`."""
    tiny_checker(seed, threshold=threshold).save_pretrained(folder / "safety_checker", safe_serialization=True)
    tiny_processor().save_pretrained(folder / "feature_extractor")
    return folder


def spec_of(policy: SafetyPolicy, class_name: str, timeout_s: float = 30.0, **settings: float) -> SafetySpec:
    """The specification of one checker of this module."""
    checker = CheckerSpec("ours", class_path=f"{HERE}:{class_name}", settings=settings)
    return SafetySpec(policy, (checker,), timeout_s)


class Bright:
    """Flags every image whose mean is above `limit`, 0 to 255."""

    def __init__(self, limit: float = 127.0) -> None:
        self._limit = limit

    def check(self, images: Sequence[ImageArray]) -> list[SafetyVerdict]:
        means = [float(np.mean(image)) for image in images]
        return [SafetyVerdict(mean > self._limit, "bright", mean / 255) for mean in means]


class Broken:
    """Raises."""

    def check(self, images: Sequence[ImageArray]) -> list[SafetyVerdict]:
        raise RuntimeError("no verdict today")


class Forgetful:
    """Answers for one image less than it was asked about."""

    def check(self, images: Sequence[ImageArray]) -> list[SafetyVerdict]:
        return [SafetyVerdict(False)] * (len(images) - 1)


class Hanging:
    """Answers when `released` is set, and not before; `reached` says that it was asked."""

    released = threading.Event()
    reached = threading.Event()

    def check(self, images: Sequence[ImageArray]) -> list[SafetyVerdict]:
        self.reached.set()
        self.released.wait()
        return [SafetyVerdict(False)] * len(images)


class NoMethod:
    """Has no `check`."""
