"""Stacks the updates of a UNet call's rows, which stand in groups of equal LoRAs."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from deployments.engine.lora.rows.factors import Factors, stack_updates
from deployments.engine.lora.rows.layers import layers_of
from deployments.engine.lora.rows.lora_set import LoraSet
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.files.loras import LoraUse

Loras = Sequence[LoraSet | None]


def order_by_loras(loras: Loras) -> list[int]:
    """Returns the indices of entries in the order in which equal LoRAs stand together, and none last."""
    first = {_key(each): i for i, each in reversed(list(enumerate(loras)))} | {(): len(loras)}
    return sorted(range(len(loras)), key=lambda i: first[_key(loras[i])])


def _key(loras: LoraSet | None) -> tuple[LoraUse, ...]:
    return () if loras is None else loras.uses


class UpdateStacks:
    """The stacked updates of the latest step of one arena."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._latest: dict[tuple[LoraSet | None, ...], Mapping[str, Factors]] = {}

    def stack(self, calls: Sequence[Loras], *, is_exact: bool) -> list[Mapping[str, Factors] | None]:
        """Returns the updates for the calls of a step, each of entries with such LoRAs, as ordered by `order_by_loras`;
        None for a call whose entries have none.

        They are stacked once for each group of entries, groups being as large as they can be if all are to have the
        same size; if entries are to be computed exactly as among any others, once for each entry.
        """
        calls_groups = [_group(loras, is_exact=is_exact) for loras in calls]
        # First what this step does not need goes: the largest stacks are as large as many rows.
        self._latest = {groups: self._latest[groups] for groups in calls_groups if groups in self._latest}
        return [self._find_or_stack(groups) for groups in calls_groups]

    def clear(self) -> None:
        """Drops what is kept of the latest step."""
        self._latest.clear()

    def _find_or_stack(self, groups: tuple[LoraSet | None, ...]) -> Mapping[str, Factors] | None:
        if not groups:
            return None
        if groups not in self._latest:
            changes = [{} if each is None else each.unet for each in groups]
            self._latest[groups] = stack_updates(changes, layers_of(self._model.unet))
        return self._latest[groups]


def _group(loras: Loras, *, is_exact: bool) -> tuple[LoraSet | None, ...]:
    """Returns the LoRAs of each group of entries; nothing if no entry has any."""
    if not any(loras):
        return ()
    size = 1 if is_exact else math.gcd(*Counter(map(_key, loras)).values())
    return tuple(loras[::size])
