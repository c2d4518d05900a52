"""Decodes latents to pictures, all of it on the device: the host gets their bytes, and whether they are pictures."""

import copy
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from deployments.engine.device.errors import is_out_of_memory
from deployments.engine.device.streams import WorkStream
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import DoesNotFit, EngineError, GenerationFailed
from deployments.engine.vae_tiles import decode_in_tiles

DARKEST: Final = 0.5 / 255
"""A picture none of whose values reach this is black."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of B latents: `values` [B, H, W, 3] are bytes. `are_valid` [B] are those whose pixels were all
    finite, and not all black; `were_finite` [B] those of whose latents all were.
    """

    values: Tensor
    are_valid: Tensor
    were_finite: Tensor

    def copy_to_host(self, stream: WorkStream) -> "Pictures":
        """Returns them on the host, where they are complete once all that `stream` has been given is done."""
        return Pictures(*map(stream.copy_to_host, (self.values, self.are_valid, self.were_finite)))


@torch.inference_mode()
def decode_latents(model: LoadedModel, latents: Tensor) -> Tensor:
    """Returns pixels [B, H, W, 3] in 0..1 (fp32) of latents [B, C, h, w]; NaN where the network answers NaN."""
    scaled = latents.to(model.vae_dtype) / model.vae.config.scaling_factor

    def decode(latents: Tensor) -> Tensor:
        decoded: Tensor = model.vae.decode(latents, return_dict=False)[0]
        return decoded

    image = decode(scaled) if model.tile is None else decode_in_tiles(decode, scaled, model.tile, model.factor)
    return (image.float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def decode_in_fp32(model: LoadedModel, latents: Tensor) -> Tensor:
    """Decodes as `decode_latents` does, with a copy of the VAE in full precision that is dropped afterwards."""
    if model.vae_dtype == torch.float32:
        return decode_latents(model, latents)
    return decode_latents(replace(model, vae=copy.deepcopy(model.vae).float(), vae_dtype=torch.float32), latents)


def make_in_fp32(model: LoadedModel, latents: Tensor, stream: WorkStream) -> Pictures:
    """Returns the one picture of `latents` [C, h, w], decoded in full precision, on the host."""
    stopwatch = stream.start_stopwatch()
    pictures = make_pictures(decode_in_fp32(model, latents[None]), latents[None]).copy_to_host(stream)
    stopwatch.stop()
    stopwatch.wait()
    return pictures


@torch.inference_mode()
def make_pictures(pixels: Tensor, latents: Tensor) -> Pictures:
    """Returns the pictures of `pixels` [B, H, W, 3] in 0..1, of which NaN becomes 0, decoded from `latents`."""
    values = (pixels.nan_to_num() * 255).round().to(torch.uint8).contiguous()
    return Pictures(values, find_valid(pixels), torch.isfinite(latents).flatten(1).all(1))


def find_valid(pixels: Tensor) -> Tensor:
    """Returns for each of `pixels` [B, H, W, 3] whether they are finite, and not all of them black: [B]."""
    flat = pixels.flatten(1)
    # In fp64, as Python compares: at the limit itself fp32 would round the limit.
    return torch.isfinite(flat).all(1) & (flat.amax(1).double() >= DARKEST)


def decode_error(error: Exception) -> EngineError:
    """Returns what a caller is told of an image that could not be decoded."""
    if is_out_of_memory(error):
        return DoesNotFit("an image of this size does not fit into the memory that there is")
    return GenerationFailed("the image could not be decoded")
