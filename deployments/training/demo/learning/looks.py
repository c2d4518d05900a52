"""What a reference picture says: its image encoder's embedding, of pictures as CLIP's own preprocessing gives them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from deployments.training.demo.models import LOOK_PIXELS


def make_processor() -> CLIPImageProcessorPil:
    """CLIP's own preprocessing, at the image encoder's size: the shorter side to 64 pixels, then the middle."""
    side = {"height": LOOK_PIXELS, "width": LOOK_PIXELS}
    return CLIPImageProcessorPil(size={"shortest_edge": LOOK_PIXELS}, crop_size=side)


@dataclass(frozen=True, eq=False)
class ImageReader:
    """An image encoder and its preprocessing."""

    encoder: CLIPVisionModelWithProjection
    processor: CLIPImageProcessorPil

    def pixels(self, images: list[NDArray[np.uint8]]) -> Tensor:
        """Images [H, W, 3] of any sizes to the encoder's pixels [B, 3, 64, 64]."""
        pixels: Tensor = self.processor(images, return_tensors="pt").pixel_values
        return pixels.to(self.encoder.device)

    @torch.no_grad()
    def __call__(self, images: list[NDArray[np.uint8]]) -> Tensor:
        """Images [H, W, 3] of any sizes to embeddings [B, 64]."""
        embeddings: Tensor = self.encoder(self.pixels(images)).image_embeds
        return embeddings
