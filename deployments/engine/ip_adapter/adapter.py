"""An IP-Adapter in memory: makes what a UNet's cross-attention sees of reference images (Ye et al. 2023)."""

from collections.abc import Sequence
from functools import cached_property
from typing import Final

import torch
from cachetools import LRUCache
from torch import Tensor, nn

from deployments.engine.checkpoints.networks import check_finite
from deployments.engine.conditioning.image_encoder import digest_picture
from deployments.engine.ip_adapter.image_projection import count_tokens, input_width, is_plain
from deployments.engine.ip_adapter.reader import IpAdapterWeights
from deployments.engine.ip_adapter.reference import Reference
from deployments.engine.ip_adapter.vision_encoder import VisionEncoder
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.settings import ReferenceSettings

KEPT_BYTES: Final = 128 * 2**20
"""The size of the cache of the latest pictures' keys; one takes 0.2 MB with SD1.5 and a plain adapter in fp16."""


class IpAdapter:
    """An IP-Adapter, with the image encoder that it was trained with. References are made on one thread."""

    def __init__(
        self,
        title: str,
        weights: IpAdapterWeights,
        encoder: VisionEncoder,
        device: torch.device,
        dtype: torch.dtype,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """Raises ModelLoadError, which begins with `title`, for an image encoder of other widths than it reads, and for
        weights that are not finite in `dtype`.
        """
        self._encoder = encoder
        self._projection = weights.projection.to(device, dtype).eval().requires_grad_(False)
        self._is_plain = is_plain(weights.projection)
        reads, given = input_width(self._projection), encoder.embedding_width if self._is_plain else encoder.state_width
        if reads != given:
            raise ModelLoadError(
                f"{title}: it reads pictures {reads} wide, and its image encoder makes them {given} wide; give the "
                "`image_encoder` that it was trained with"
            )
        self._to_keys = _join(weights.attention).to(device, dtype)
        for network in (self._projection, self._to_keys):
            check_finite(title, network, dtype)
        widths = [len(each) for each in weights.attention]
        is_value = [torch.full((width,), bool(i % 2)) for i, width in enumerate(widths)]
        self._is_value = torch.cat(is_value).to(device)
        self.tokens = count_tokens(self._projection)
        self._cache: LRUCache[bytes, Tensor] = LRUCache(kept_bytes, getsizeof=lambda keys: keys.nbytes)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All modules that have weights; adapters may share an image encoder."""
        return self._projection, self._to_keys, self._encoder.network

    @torch.inference_mode()
    def refer(self, images: Sequence[ImageArray], settings: ReferenceSettings, *, guided: bool) -> Reference | None:
        """Returns the reference of `images` [H, W, 3] each, for a row with guidance or without; None if it is without
        effect.
        """
        weights = [weight * settings.scale for weight in settings.weights or [1.0] * len(images)]
        if not any(weights):
            return None
        keys = [self._keys_of(image) for image in images]
        negative = self._weigh([self._no_image] * len(images), weights) if guided else None
        return Reference(self._weigh(keys, weights), negative, settings.start, settings.end)

    def _weigh(self, keys: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Returns the keys of several images as one sequence, the values of each times its weight."""
        pairs = zip(keys, weights, strict=True)
        return torch.cat([torch.where(self._is_value, each * weight, each) for each, weight in pairs])

    def _keys_of(self, image: ImageArray) -> Tensor:
        """Returns the keys and values [tokens, width] of one image."""
        digest = digest_picture(image)
        found = self._cache.get(digest)
        if found is None:
            found = self._project(self._encoder.embed(image) if self._is_plain else self._encoder.states(image))
            if found.nbytes <= self._cache.maxsize:
                self._cache[digest] = found
        return found

    @cached_property
    def _no_image(self) -> Tensor:
        """The keys and values of no image: of an embedding of zeros, or of the states of a picture of zeros."""
        if self._is_plain:
            return self._project(self._to_keys.weight.new_zeros((1, self._encoder.embedding_width)))
        return self._project(self._encoder.states(None))

    def _project(self, seen: Tensor) -> Tensor:
        keys: Tensor = self._to_keys(self._projection(seen))[0]
        return keys


def _join(weights: Sequence[Tensor]) -> nn.Linear:
    """Returns the layer that makes the keys and values of all layers at once."""
    joined = nn.Linear(1, 1, bias=False, device="meta")
    joined.weight = nn.Parameter(torch.cat(tuple(weights)), requires_grad=False)
    joined.out_features, joined.in_features = joined.weight.shape
    return joined.eval()
