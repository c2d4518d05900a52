"""Caches cross-attention's keys and values: they depend on the prompt alone, so they are computed once per prompt."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from cachetools import LRUCache
from torch import Tensor, nn

from deployments.engine.conditioning.prompt_encoder import repeat_to
from deployments.engine.padding import pad

KEPT_BYTES: Final = 128 * 2**20
"""The size of the cache of the latest prompts' keys; a chunk of 77 tokens takes 3.8 MB with SD1.5 in fp16."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPrompt:
    """A prompt as the UNet needs it: `embedding` [tokens, dim], and its `keys`, one [tokens, width] per projection."""

    embedding: Tensor
    keys: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.embedding)

    @property
    def bytes(self) -> int:
        """The bytes of the keys."""
        return sum(keys.nbytes for keys in self.keys)


class CrossAttentionCache:
    """The key and value projections of a UNet's cross-attention, taken out of its loop. Used from one thread."""

    def __init__(self, unet: Any, kept_bytes: int = KEPT_BYTES) -> None:
        """`unet` is diffusers' and is changed; called outside `substitute`, it still projects for itself.

        The keys of the latest prompts are kept, as far as they fit into `kept_bytes`.
        """
        self._projections = [
            _wrap_projection(layer, name) for layer in _find_cross_attentions(unet) for name in ("to_k", "to_v")
        ]
        self._cache: LRUCache[int, EncodedPrompt] = LRUCache(kept_bytes, getsizeof=lambda prompt: prompt.bytes)

    @torch.inference_mode()
    def project(self, embedding: Tensor) -> EncodedPrompt:
        """Returns `embedding` [tokens, dim] with its projections.

        Do not modify it: requests with one prompt share it.
        """
        # By identity: the prompt encoder's cache returns the same tensor, which an entry here keeps alive.
        found = self._cache.get(id(embedding))
        if found is None:
            found = EncodedPrompt(embedding, tuple(each.projection(embedding[None])[0] for each in self._projections))
            if found.bytes <= self._cache.maxsize:
                self._cache[id(embedding)] = found
        return found

    @contextmanager
    def substitute(self, prompts: Sequence[EncodedPrompt], tokens: int, padded: int) -> Iterator[Tensor]:
        """Yields the embeddings of `prompts`, [padded, tokens, dim]; a UNet call inside uses their cached keys and
        values.
        """
        for i, each in enumerate(self._projections):
            each.answer = _stack([prompt.keys[i] for prompt in prompts], tokens, padded)
        try:
            yield _stack([prompt.embedding for prompt in prompts], tokens, padded)
        finally:
            for each in self._projections:
                each.answer = None


class _CachedProjection(nn.Module):
    """Replaces a projection, and returns its cached output if there is one."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection
        self.answer: Tensor | None = None

    def forward(self, context: Tensor) -> Tensor:
        if self.answer is not None:
            return self.answer
        answer: Tensor = self.projection(context)
        return answer


def _find_cross_attentions(unet: nn.Module) -> list[Any]:
    return [module for name, module in unet.named_modules() if name.endswith(".attn2")]


def _wrap_projection(layer: nn.Module, name: str) -> _CachedProjection:
    module = _CachedProjection(layer.get_submodule(name))
    layer.add_module(name, module)
    return module


def _stack(rows: Sequence[Tensor], tokens: int, padded: int) -> Tensor:
    return pad(torch.stack([repeat_to(row, tokens) for row in rows]), padded)
