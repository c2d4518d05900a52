"""Encodes a request's images for the networks: the VAE's posteriors, masks and hints. Computed once and cached."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor

from deployments.engine.conditioning.compositing import threshold_mask
from deployments.engine.protocol.inputs import ImageArray, Mask
from deployments.engine.sampling.latents import draw_noise
from deployments.engine.vae_tiles import encode_in_tiles, latent_factor


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """The VAE's encoding of an image: a Gaussian over scaled latents, `mean` and `deviation` [C, h, w] fp32 on the CPU.

    diffusers draws from it for every image, before it draws the noise; so does `draw`.
    """

    mean: Tensor
    deviation: Tensor

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draws one sample [C, h, w]."""
        return self.mean + self.deviation * draw_noise(generator, *self.mean.shape)


class ImageEncoder:
    """Encodes images with one model's VAE, and caches the latest: callers often vary the prompt over one image.

    `encode` is used from one thread.
    """

    def __init__(
        self,
        vae: Any,
        device: torch.device,
        dtype: torch.dtype,
        cache_size: int = 32,
        *,
        tile: int | None = None,
    ) -> None:
        """`tile` is the side in pixels of the tiles that larger images are encoded in; None encodes them at once."""
        self._vae = vae
        self._tile = tile
        self._device = device
        self._dtype = dtype
        self._cache: LRUCache[bytes, Posterior] = LRUCache(cache_size)

    def encode(self, image: ImageArray, mask: Mask | None = None) -> Posterior:
        """Encodes `image` [H, W, 3]; with a mask, only what is outside of it, the rest being mid-grey."""
        key = digest_picture(image, mask)
        found = self._cache.get(key)
        if found is None:
            found = self._cache[key] = self.encode_once(image, mask)
        return found

    @torch.inference_mode()
    def encode_once(self, image: ImageArray, mask: Mask | None = None) -> Posterior:
        """Encodes as `encode` does an image that will not come again. From any thread."""
        pixels = to_unit_pixels(image) * 2 - 1
        if mask is not None:
            pixels = pixels * torch.from_numpy(~threshold_mask(mask))
        answer = self._distribution_of(pixels[None].to(self._device, self._dtype))
        scale = float(self._vae.config.scaling_factor)
        return Posterior(answer.mean[0].float().cpu() * scale, answer.std[0].float().cpu() * scale)

    def _distribution_of(self, pixels: Tensor) -> Any:
        """Returns diffusers' distribution of the latents of `pixels` [1, 3, H, W]."""
        if self._tile is None:
            return self._vae.encode(pixels).latent_dist
        of_tiles: list[Any] = []

        def encode(tile: Tensor) -> Tensor:
            of_tiles.append(self._vae.encode(tile).latent_dist)
            parameters: Tensor = of_tiles[-1].parameters
            return parameters

        parameters = encode_in_tiles(encode, pixels, self._tile, latent_factor(self._vae))
        return type(of_tiles[-1])(parameters)


def to_unit_pixels(image: ImageArray) -> Tensor:
    """Converts `image` [H, W, 3] to [3, H, W] fp32 in 0..1."""
    # Copied, because torch takes no array that must not be written to.
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1) / 255


def to_latent_mask(mask: Mask, factor: int) -> Tensor:
    """Returns [1, h, w] fp32, 1 where latents are repainted: every `factor`-th pixel of the mask, as diffusers shrinks
    it.
    """
    return torch.from_numpy(threshold_mask(mask))[None, ::factor, ::factor].float()


def digest_picture(image: ImageArray, mask: Mask | None = None) -> bytes:
    """Returns a digest of the pixels, and of a mask's."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(image.tobytes())
    if mask is not None:
        digest.update(mask.tobytes())
    return digest.digest()
