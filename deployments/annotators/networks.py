"""Loads a network of transformers' for any annotator, with the image processor that belongs to it."""

import logging
import time
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor

from deployments.engine.checkpoints.file_integrity import read_config
from deployments.engine.checkpoints.library_loading import load_exclusively
from deployments.engine.checkpoints.networks import load_network as load_whole
from deployments.engine.device.errors import raise_if_sticky
from deployments.engine.models.components import size_of
from deployments.engine.models.hub import locate
from deployments.engine.protocol.errors import InvalidParameter, ModelLoadError
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.spec import PartSpec

log = logging.getLogger(__name__)

MIN_SIDE: Final = 64

WORKING_PIXELS: Final = 768 * 768
"""Networks that answer per pixel were trained on less: beyond it they take more memory and answer no better."""

PROCESSOR: Final = "preprocessor_config.json"

_FILES: Final = "it needs config.json, preprocessor_config.json and weights as safetensors, in transformers' layout"


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network of transformers' in fp32 on `device`, and its own image processor.

    In fp32 everywhere: one call per request is cheap, and hints then hardly differ between devices.
    """

    model: Any
    processor: Any
    device: torch.device

    @torch.inference_mode()
    def __call__(self, image: ImageArray, options: dict[str, Any] | None = None, **inputs: torch.Tensor) -> Any:
        """Returns the model's answer to `image` [H, W, 3]; `options` are the processor's, `inputs` the model's.

        Raises InvalidParameter for an image that is too small to see anything in.
        """
        if min(image.shape[:2]) < MIN_SIDE:
            raise InvalidParameter("image", f"must be at least {MIN_SIDE} x {MIN_SIDE} pixels to make a hint from")
        prepared = self.processor(Image.fromarray(image), return_tensors="pt", **(options or {}))
        return self.model(**prepared.to(self.device), **inputs)


def load_network(title: str, weights: PartSpec, kind: Any, device: torch.device) -> Network:
    """Loads `weights` as `kind`, a class of transformers'; safetensors only, no remote code.

    Raises ModelLoadError, which begins with `title` and says what is missing.
    """
    folder = locate(title, weights.source, weights.revision, ("",), half=False)
    started = time.perf_counter()
    try:
        for name in ("config.json", PROCESSOR):
            read_config(title, folder / name)
        # Always with Pillow: with torchvision installed, transformers would prepare images slightly differently.
        with load_exclusively():
            processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        model = load_whole(title, weights.source, folder, kind, torch.float32, device, half=False)
    except ModelLoadError as error:
        raise ModelLoadError(f"{error.message}; {_FILES}") from error
    except Exception as error:  # transformers raises all sorts on files that are broken or of another kind
        raise_if_sticky(error)
        raise ModelLoadError(f"{title}: its {PROCESSOR} does not make an image processor; {_FILES}") from error
    log.info("%s: %.0f MB loaded in %.1f s", title, size_of(model) / 1e6, time.perf_counter() - started)
    return Network(model, processor, device)


def shrink_to(image: ImageArray, pixels: int) -> ImageArray:
    """Returns `image` [H, W, 3], or a smaller copy of about `pixels` pixels if it has more."""
    height, width = image.shape[:2]
    scale = (pixels / (height * width)) ** 0.5
    if scale >= 1:
        return image
    size = max(MIN_SIDE, round(width * scale)), max(MIN_SIDE, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
