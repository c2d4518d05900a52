"""Counts what the stacked LoRAs and references of a bucket's UNet calls take in memory. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from deployments.engine.protocol.request import Request

if TYPE_CHECKING:
    from deployments.engine.ip_adapter.reference import Reference
    from deployments.engine.lora.rows.lora_set import LoraSet


class Adapted(Protocol):
    """An image, or a prepared request, and what its part of a UNet call has beside the network."""

    @property
    def request(self) -> Request: ...

    @property
    def loras(self) -> LoraSet | None: ...

    @property
    def reference(self) -> Reference | None: ...


@dataclass(frozen=True, slots=True)
class StackSize:
    """The bytes of the stacks of a step: `per_group` of its UNet call's entries, padding included, and `per_entry`.

    A group has at least `smallest` entries if all of them together are a multiple of that, or all entries if `smallest`
    is None. Stacks are kept between steps.
    """

    per_group: int = 0
    per_entry: int = 0
    smallest: int | None = None

    def bytes(self, entries: int) -> int:
        """Returns the bytes for a call of so many entries."""
        size = entries if self.smallest is None else self.smallest
        groups = entries if entries % size else entries // size
        return groups * self.per_group + entries * self.per_entry


NO_STACKS: Final = StackSize()


def size_of_stacks(adapted: Sequence[Adapted]) -> StackSize:
    """Returns the most that the stacks of `adapted`, all of one bucket, can take, at whatever steps they are.

    Groups are of the same size: all entries if they have the same LoRAs, at least both of an image if all are guided in
    every step, else maybe one. Each takes as much as the highest rank in every layer, even without LoRAs, and each
    entry as the longest reference.
    """
    sets = {each.loras.uses: each.loras for each in adapted if each.loras is not None}
    is_exact = any(each.request.params.exact for each in adapted)
    referring = (each.reference for each in adapted if each.reference is not None)
    reference = max((each.entry_bytes(is_exact=is_exact) for each in referring), default=0)
    largest: Counter[str] = Counter()
    for each in sets.values():
        largest |= each.group_bytes
    # One step may call the whole UNet for some, and the UNet without its deep blocks for others.
    calls = 2 if any(each.request.params.deep_cache > 1 for each in adapted) else 1
    smallest: int | None = 1
    if not is_exact and all(_is_always_guided(each.request) for each in adapted):
        smallest = 2
    if not is_exact and len(sets) == 1 and all(each.loras is not None for each in adapted):
        smallest = None
    return StackSize(calls * largest.total(), calls * reference, smallest)


def _is_always_guided(request: Request) -> bool:
    return request.unet_rows > 1 and request.params.guidance_interval is None
