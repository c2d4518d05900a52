"""Stable Diffusion's own safety checker: CLIP's view of an image against the embeddings of unwanted concepts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from PIL import Image
from torch import nn

from deployments.engine.checkpoints.networks import load_image_processor, load_network
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.safety import CHECKER_PARTS, SafetyVerdict

CATEGORY: Final = "nsfw"
"""The one category: the embeddings were published without the words that they are of."""

SPECIAL_CARE: Final = 0.01
"""By how much every threshold falls if an image is near one of the concepts that need special care, as in diffusers."""


class ConceptChecker:
    """diffusers' `StableDiffusionSafetyChecker` with its own thresholds, and its image processor.

    An image is flagged exactly if diffusers' pipelines would black it out. Its score is the largest similarity to a
    concept less that concept's threshold, rounded as diffusers rounds it: flagged above 0.
    """

    def __init__(self, network: StableDiffusionSafetyChecker, processor: Any, device: torch.device) -> None:
        self._network, self._processor, self._device = network, processor, device

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Its network."""
        return (self._network,)

    @torch.inference_mode()
    def check(self, images: Sequence[ImageArray]) -> list[SafetyVerdict]:
        """Returns a verdict for each of `images`, uint8 [H, W, 3]."""
        pixels = self._processor([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
        network = self._network
        seen = network.visual_projection(network.vision_model(pixels.to(self._device, network.dtype))[1])
        special = _margins(seen, network.special_care_embeds, network.special_care_embeds_weights)
        concepts = _margins(seen, network.concept_embeds, network.concept_embeds_weights)
        return [self._judge(*margins) for margins in zip(special, concepts, strict=True)]

    @staticmethod
    def _judge(special: "np.ndarray[Any, Any]", concepts: "np.ndarray[Any, Any]") -> SafetyVerdict:
        # diffusers lowers the thresholds of all later special concepts as well, which no outcome depends on.
        lowered = SPECIAL_CARE if any(round(margin, 3) > 0 for margin in special) else 0.0
        score = max(round(margin + lowered, 3) for margin in concepts)
        return SafetyVerdict(bool(score > 0), CATEGORY, float(score))


def load_concept_checker(
    title: str, source: str, root: Path, dtype: torch.dtype, device: torch.device, *, half: bool
) -> ConceptChecker:
    """Loads the checker from CHECKER_PARTS of the folder `root`, which the configuration calls `source`.

    Raises ModelLoadError, which begins with `title`.
    """
    network_folder, processor_folder = (root / part for part in CHECKER_PARTS)
    for folder in (network_folder, processor_folder):
        if not folder.is_dir():
            raise ModelLoadError(
                f"{title}: {source!r} has no {folder.name}/; give the checker a `source` with "
                f"{' and '.join(f'{part}/' for part in CHECKER_PARTS)}"
            )
    processor = load_image_processor(title, processor_folder)
    network = load_network(title, source, network_folder, StableDiffusionSafetyChecker, dtype, device, half=half)
    return ConceptChecker(network, processor, device)


def _margins(seen: torch.Tensor, concepts: torch.Tensor, thresholds: torch.Tensor) -> "np.ndarray[Any, Any]":
    """Returns how far the similarity of each of `seen` [B, width] to each concept is above that one's threshold."""
    similarity = cosine_distance(seen, concepts).cpu().float().numpy()
    margins: np.ndarray[Any, Any] = similarity - thresholds.cpu().float().numpy()
    return margins
