"""What a CLIP vision model says of a picture: an IP-Adapter's image encoder."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from deployments.engine.checkpoints.networks import PROCESSOR, load_image_processor, load_network
from deployments.engine.protocol.inputs import ImageArray

_ANY: Final = np.zeros((8, 8, 3), np.uint8)


class VisionEncoder:
    """A CLIP vision model, and how it wants its pictures. It runs in torch whatever the backend is. Used from one
    thread at a time.
    """

    def __init__(self, network: Any, processor: Any, device: torch.device) -> None:
        """`network` is a `CLIPVisionModelWithProjection`, and `processor` an image processor of transformers'."""
        self.network = network
        self._processor, self._device = processor, device

    @property
    def embedding_width(self) -> int:
        """The width of a picture's embedding."""
        return int(self.network.config.projection_dim)

    @property
    def state_width(self) -> int:
        """The width of the states of a picture's patches."""
        return int(self.network.config.hidden_size)

    @torch.inference_mode()
    def embed(self, image: ImageArray) -> Tensor:
        """Returns the embedding [1, width] of `image` [H, W, 3]."""
        embedding: Tensor = self.network(self._pixels_of(image)).image_embeds
        return embedding

    @torch.inference_mode()
    def states(self, image: ImageArray | None) -> Tensor:
        """Returns the last states but one of the patches of `image` [H, W, 3], [1, patches, width].

        None stands for a picture whose pixels are 0 where the network sees them, as diffusers' does for no picture.
        """
        pixels = torch.zeros_like(self._pixels_of(_ANY)) if image is None else self._pixels_of(image)
        states: Tensor = self.network(pixels, output_hidden_states=True).hidden_states[-2]
        return states

    def _pixels_of(self, image: ImageArray) -> Tensor:
        pixels: Tensor = self._processor([Image.fromarray(image)], return_tensors="pt").pixel_values
        return pixels.to(self._device, self.network.dtype)


def load_vision_encoder(
    title: str, source: str, folder: Path, dtype: torch.dtype, device: torch.device, *, half: bool
) -> VisionEncoder:
    """Loads the CLIP vision model in `folder`, which the configuration calls `source`.

    Without a `preprocessor_config.json` its pictures are prepared as diffusers does then: for its own `image_size`.
    Raises ModelLoadError, which begins with `title`.
    """
    network = load_network(title, source, folder, CLIPVisionModelWithProjection, dtype, device, half=half)
    if not (folder / PROCESSOR).is_file():
        side = int(network.config.image_size)
        return VisionEncoder(network, CLIPImageProcessorPil(size=side, crop_size=side), device)
    processor = load_image_processor(title, folder)
    return VisionEncoder(network, processor, device)
