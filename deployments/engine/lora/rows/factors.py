"""The updates of a call's rows, stacked: one tensor of each kind for every layer that some row changes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from deployments.engine.lora.layer_update import LayerUpdate


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Factors:
    """What changes in one layer for N groups of rows, each of the same number of rows, one group after the other.

    `down` is [N, rank, in], of a convolution [N, rank, in, kh, kw], and `up` [N, out, rank]; a group of a lower rank
    has zeros there. `gain` and `shift` [N, out] are what its answers are multiplied by besides 1, and what is added to
    them then; None where no group has a gain. All three change nothing where they are 0.
    """

    down: Tensor
    up: Tensor
    gain: Tensor | None = None
    shift: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that there are."""
        return tuple(each for each in (self.down, self.up, self.gain, self.shift) if each is not None)


def stack_updates(
    groups: Sequence[Mapping[str, LayerUpdate]], layers: Mapping[str, nn.Linear | nn.Conv2d]
) -> dict[str, Factors]:
    """Returns the factors of every layer that one of `groups` changes, by its path; `layers` has all of them."""
    changed = dict.fromkeys(name for group in groups for name in group)
    return {name: _stack_layer([group.get(name) for group in groups], layers[name]) for name in changed}


def count_group_bytes(group: Mapping[str, LayerUpdate]) -> Counter[str]:
    """Returns the bytes of one group of rows in a stack of such changes alone, by layer and what changes there.

    Among others, each of the groups takes what the largest takes, by layer and by what changes.
    """
    sizes = Counter({name: update.down.nbytes + update.up.nbytes for name, update in group.items()})
    gains = {name: update.gain for name, update in group.items() if update.gain is not None}
    # A gain has a shift beside it.
    return sizes + Counter({f"{name}: gain": 2 * gain.nbytes for name, gain in gains.items()})


def add_update(layer: nn.Module, given: Tensor, answer: Tensor, factors: Factors) -> Tensor:
    """Returns the answer of a changed layer; `given` and `answer` are the unchanged layer's, the rows first.

    `answer` may be written to.
    """
    if factors.gain is not None and factors.shift is not None:
        gain, shift = (_per_row(each, answer, layer) for each in (factors.gain, factors.shift))
        answer = answer + (answer * gain + shift)
    if isinstance(layer, nn.Conv2d):
        return answer.add_(_convolve(layer, given, factors, answer))
    groups, _, width = factors.down.shape
    hidden = torch.bmm(given.reshape(groups, -1, width), factors.down.transpose(1, 2))
    whole = answer.reshape(groups, -1, factors.up.shape[1])
    return whole.baddbmm_(hidden, factors.up.transpose(1, 2)).reshape(answer.shape)


def _convolve(layer: nn.Conv2d, given: Tensor, factors: Factors, answer: Tensor) -> Tensor:
    """Returns what is added to a convolution's answer: all groups' in one convolution, whose groups they are."""
    groups, rank, channels, *kernel = factors.down.shape
    rows, height, width = len(given) // groups, *given.shape[2:]
    # The groups side by side as channels; their rows become the batch.
    maps = given.reshape(groups, rows, channels, height, width).transpose(0, 1)
    hidden = functional.conv2d(
        maps.reshape(rows, groups * channels, height, width),
        factors.down.reshape(groups * rank, channels, *kernel),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=groups,
    )
    hidden = hidden.reshape(rows, groups, rank, -1).transpose(0, 1)
    return torch.matmul(factors.up.unsqueeze(1), hidden).reshape(answer.shape)


def _per_row(values: Tensor, answer: Tensor, layer: nn.Module) -> Tensor:
    """Returns `values` [N, out] for each row of `answer`, to be broadcast over it."""
    repeated = values.repeat_interleave(len(answer) // len(values), dim=0)
    if isinstance(layer, nn.Conv2d):
        return repeated[:, :, None, None]
    return repeated.reshape(len(answer), *[1] * (answer.ndim - 2), -1)


def _stack_layer(updates: Sequence[LayerUpdate | None], layer: nn.Linear | nn.Conv2d) -> Factors:
    first = next(update for update in updates if update is not None)
    ranks = [0 if update is None else update.rank for update in updates]
    down = first.down.new_zeros((len(updates), max(1, *ranks), *first.down.shape[1:]))
    up = first.up.new_zeros((len(updates), len(first.up), max(1, *ranks)))
    for i, update in enumerate(updates):
        if update is not None:
            down[i, : update.rank], up[i, :, : update.rank] = update.down, update.up
    if all(update is None or update.gain is None for update in updates):
        return Factors(down, up)
    gain = first.up.new_zeros((len(updates), len(first.up)))
    for i, update in enumerate(updates):
        if update is not None and update.gain is not None:
            gain[i] = update.gain - 1
    bias = layer.bias
    return Factors(down, up, gain, torch.zeros_like(gain) if bias is None else -gain * bias)


def factors_bytes(factors: Mapping[str, Factors]) -> int:
    """Returns the bytes of all of `factors`."""
    return sum(tensor.nbytes for each in factors.values() for tensor in each.tensors)


def changes_gains(factors: Mapping[str, Factors]) -> bool:
    """Returns True if some layer has a gain."""
    return any(each.gain is not None for each in factors.values())
