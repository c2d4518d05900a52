"""What reference images add to a row's cross-attention, and the references of the rows of a call, stacked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from deployments.engine.conditioning.cross_attention import MASKED, AttentionContext
from deployments.engine.ip_adapter.image_projection import MOST_TOKENS
from deployments.engine.protocol.settings import MAX_REFERENCES

EXACT_TOKENS: Final = MOST_TOKENS * MAX_REFERENCES
"""The length of references in calls of rows that are to be the same to the byte whatever runs beside them."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The reference images of a request, as its rows' cross-attention sees them.

    `keys` [tokens, width] are the keys and values of all layers side by side, as a prompt's are, the values times the
    scale and the images' weights; `negative` are those of no images, for the half without the prompt; None without
    classifier-free guidance. It acts from `start` to `end`, shares of the schedule.
    """

    keys: Tensor
    negative: Tensor | None
    start: float
    end: float

    @property
    def tokens(self) -> int:
        """The length in calls of such references alone."""
        return padded_tokens(len(self.keys))

    def entry_bytes(self, *, is_exact: bool) -> int:
        """Returns the bytes of an entry of a call of such references, or shorter ones, which may have to be exact."""
        # Each token has a bias beside its keys.
        return (self.keys[0].nbytes + self.keys.itemsize) * (EXACT_TOKENS if is_exact else self.tokens)

    def is_active(self, step: int, steps: int) -> bool:
        """Returns True if it acts on evaluation `step` of `steps`."""
        return step / steps >= self.start and (step + 1) / steps <= self.end

    def half(self, *, prompted: bool) -> Tensor:
        """Returns the keys of the half with or without the prompt."""
        if prompted:
            return self.keys
        assert self.negative is not None
        return self.negative


@dataclass(frozen=True, slots=True, eq=False)
class StackedReferences:
    """The references of a UNet call's E entries: `keys` [E, T, width], and the `bias` [E, T] of an AttentionContext.

    The values of an entry without any are 0: what it finds there is 0.
    """

    keys: Tensor
    bias: Tensor

    def beside(self, prompts: Tensor) -> AttentionContext:
        """Returns what cross-attention looks at, with `prompts` [E, tokens, width]."""
        return AttentionContext(prompts, self.keys, self.bias)


def padded_tokens(tokens: int) -> int:
    """Returns the length that so many tokens are padded to: a power of two, so that calls have few shapes."""
    return 1 << (tokens - 1).bit_length()


@torch.inference_mode()
def stack_references(entries: Sequence[Tensor | None], like: Tensor, tokens: int) -> StackedReferences:
    """Stacks the keys of a call's entries, [n, width] each or None, at a length of `tokens`; `like` any keys."""
    keys = like.new_zeros((len(entries), tokens, like.shape[1]))
    bias = like.new_zeros((len(entries), tokens))
    for place, given in enumerate(entries):
        if given is not None:
            keys[place, : len(given)] = given
            bias[place, len(given) :] = MASKED
    return StackedReferences(keys, bias)
