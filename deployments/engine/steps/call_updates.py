"""Stacks the updates of a UNet call's rows, which stand in groups of equal LoRAs."""

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from deployments.engine.lora.rows.factors import Factors, stack_updates
from deployments.engine.lora.rows.layers import layers_of
from deployments.engine.lora.rows.lora_set import LoraSet
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.files.loras import LoraUse

_KEPT: Final = 2
"""The stacks that are kept: of a step's whole call and its shallow one."""

Loras = Sequence[LoraSet | None]


def order_by_loras(loras: Loras) -> list[int]:
    """Returns the indices of entries in the order in which equal LoRAs stand together, and none last."""
    first = {_key(each): i for i, each in reversed(list(enumerate(loras)))} | {(): len(loras)}
    return sorted(range(len(loras)), key=lambda i: first[_key(loras[i])])


def _key(loras: LoraSet | None) -> tuple[LoraUse, ...]:
    return () if loras is None else loras.uses


class UpdateStacks:
    """The stacked updates of the latest calls of one arena."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._latest: OrderedDict[tuple[LoraSet | None, ...], Mapping[str, Factors]] = OrderedDict()

    def stack(self, loras: Loras, *, is_exact: bool) -> Mapping[str, Factors] | None:
        """Returns the updates of entries with `loras`, as ordered by `order_by_loras`; None if they have none.

        They are stacked once for each group of entries, groups being as large as they can be if all are to have the
        same size; if entries are to be computed exactly as among any others, once for each entry.
        """
        if not any(loras):
            self._latest.clear()
            return None
        size = 1 if is_exact else math.gcd(*Counter(map(_key, loras)).values())
        groups = tuple(loras[::size])
        if groups not in self._latest:
            while len(self._latest) >= _KEPT:
                self._latest.popitem(last=False)
            changes = [{} if each is None else each.unet for each in groups]
            self._latest[groups] = stack_updates(changes, layers_of(self._model.unet))
        return self._latest[groups]
