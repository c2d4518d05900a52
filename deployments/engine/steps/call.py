"""Lays out the UNet calls of a step: which slots take part in them, and where, as index tensors on the device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deployments.engine.conditioning.controlnet import CallSlot, ControlCall, plan_controls
from deployments.engine.conditioning.cross_attention import EncodedPrompt
from deployments.engine.device.streams import copy_to_device
from deployments.engine.ip_adapter.reference import EXACT_TOKENS, StackedReferences, stack_references
from deployments.engine.lora.rows.factors import Factors
from deployments.engine.lora.rows.lora_set import LoraSet
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.padding import padded_size
from deployments.engine.row import Row
from deployments.engine.steps.arena import MAX_EVALUATIONS, Arena, PromptSlots
from deployments.engine.steps.call_updates import order_by_loras

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True, eq=False)
class UNetCall:
    """One call of the UNet with E entries, the last of them padding, which repeats the last one before.

    `owner` [E] says whose latents an entry has, as an index into the step's rows; `rows` [E] the same as slots.
    `prompts` [E] are its prompts' slots, and `deep` [E] its places in the arena's `deep`, both first indices as one.
    `keeps_deep` says that what the deep blocks answer is kept, or, for a shallow call, used. `updates` are what LoRAs
    change in the UNet, by layer; None if no entry has any, and `changed_rows` the entries that have some. `references`
    are what cross-attention sees beside the prompts; None if no entry has any.
    """

    owner: Tensor
    rows: Tensor
    prompts: Tensor
    deep: Tensor
    controls: tuple[ControlCall, ...]
    keeps_deep: bool
    updates: Mapping[str, Factors] | None = None
    changed_rows: int = 0
    references: StackedReferences | None = None

    @property
    def size(self) -> int:
        """The number of entries, padding included."""
        return len(self.owner)


@dataclass(frozen=True, slots=True, eq=False)
class StepCall:
    """The calls for R rows' next evaluation: of the `whole` UNet, and one without its deep blocks, `shallow`.

    `rows` [R] are slots, and `offsets` [R] where their tables begin. `prompted` and `partner` [R] are a row's entries,
    of both calls one after the other, with and without its prompt; the same one for a row without guidance. `is_exact`
    says that one of the rows is to be the same to the byte whatever runs beside it.
    """

    rows: Tensor
    offsets: Tensor
    prompted: Tensor
    partner: Tensor
    prompts: PromptSlots
    whole: UNetCall | None
    shallow: UNetCall | None
    whole_rows: int
    shallow_rows: int
    control_rows: int
    is_exact: bool = False

    @property
    def changed_rows(self) -> int:
        """The entries that LoRAs change."""
        return sum(call.changed_rows for call in (self.whole, self.shallow) if call is not None)

    @property
    def padded_rows(self) -> int:
        """The number of entries, padding included."""
        return sum(call.size for call in (self.whole, self.shallow) if call is not None)


class CallPlanner:
    """Plans calls of one arena, which keeps the latest: it holds until a row joins, leaves or needs other networks.

    `sizes` are what calls are padded to, ascending; `lengths` what prompts are repeated to (tokens), ascending: without
    any the length of the longest.
    """

    def __init__(self, arena: Arena, sizes: tuple[int, ...], lengths: tuple[int, ...] = ()) -> None:
        self._arena, self._sizes, self._lengths = arena, sizes, lengths

    def plan(self, model: LoadedModel, rows: Sequence[Row]) -> StepCall:
        """Returns the call for `rows`, all of them in slots of the arena."""
        latest, key = self._arena.latest, (self._sizes, self._lengths, *(_key_of(row) for row in rows))
        if latest.call is None or key != latest.key:
            latest.clear()
            latest.call = _Layout(self._arena, model, rows, self._sizes, self._lengths).lay_out()
            latest.key = key
        return latest.call


def lay_out_one_row(arena: Arena, row: Row, size: int, tokens: int) -> StepCall:
    """Returns a call that advances `row`, which is in a slot, without guidance, in `size` entries at once."""
    assert row.slot is not None
    prompts, slot = arena.prompts(tokens), row.slot.index
    (place,) = prompts.place([row.prompt])

    def index(value: int) -> Tensor:
        return torch.full((size,), value, device=arena.steps.device)

    unet = UNetCall(index(0), index(slot), index(place), index(2 * slot), controls=(), keeps_deep=False)
    rows, offsets = index(slot), index(slot * MAX_EVALUATIONS)
    return StepCall(rows, offsets, index(0), index(0), prompts, unet, None, size, 0, 0)


def call_size(rows: Sequence[Row], sizes: tuple[int, ...]) -> int:
    """Returns the padded size of the larger of the UNet calls for `rows`."""
    shallow = sum(row.unet_rows for row in rows if row.is_shallow)
    return padded_size(max(shallow, sum(row.unet_rows for row in rows) - shallow), _sizes_for(rows, sizes))


def _sizes_for(rows: Sequence[Row], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns what calls for `rows` may be padded to: only the largest if one of them is to be exact."""
    return sizes[-1:] if _is_exact(rows) else sizes


def _is_exact(rows: Sequence[Row]) -> bool:
    return any(row.request.params.exact for row in rows)


def _key_of(row: Row) -> Key:
    """Returns all of `row` that a call's layout depends on."""
    active = tuple(
        control.is_active(row.step, len(row.schedule), prompted)
        for control in row.controls
        for prompted in (True, False)
    )
    reference = row.reference if row.is_referring else None
    # Not the slot itself: the arena that keeps this would keep itself alive.
    slot = None if row.slot is None else row.slot.index
    return slot, row.prompt, row.negative, row.loras, reference, row.is_guided, row.is_shallow, active


class _Entry(NamedTuple):
    """A row's place in a UNet call: `owner` is the row's index, `is_prompted` says with which prompt."""

    owner: int
    is_prompted: bool


class _Layout:
    """Lays out the calls for `rows`."""

    def __init__(
        self,
        arena: Arena,
        model: LoadedModel,
        rows: Sequence[Row],
        sizes: tuple[int, ...],
        lengths: tuple[int, ...],
    ) -> None:
        self._arena, self._model, self._rows, self._sizes = arena, model, rows, sizes
        self._slots = [row.slot.index for row in rows if row.slot is not None]
        entries = [_Entry(i, True) for i in range(len(rows))]
        entries += [_Entry(i, False) for i, row in enumerate(rows) if row.is_guided]
        self._entries = [entries[i] for i in order_by_loras([self._loras(entry) for entry in entries])]
        longest = max(len(self._prompt(entry)) for entry in self._entries)
        tokens = next((length for length in lengths if length >= longest), longest)
        self._prompts = arena.prompts(model.prompt_encoder.max_tokens if _is_exact(rows) else tokens)

    def lay_out(self) -> StepCall:
        whole = [entry for entry in self._entries if not self._rows[entry.owner].is_shallow]
        shallow = [entry for entry in self._entries if self._rows[entry.owner].is_shallow]
        # All at once: no prompt may lose its slot to another one of the same step.
        slots = dict(zip(self._entries, self._prompts.place([self._prompt(e) for e in self._entries]), strict=True))
        padded = [self._pad(entries) for entries in (whole, shallow)]
        loras = [[self._loras(entry) for entry in entries] for entries in padded]
        updates = self._arena.updates.stack(loras, is_exact=_is_exact(self._rows))
        parts = zip((whole, shallow), padded, updates, strict=True)
        calls = [self._lay_out_call(*part, slots) if part[0] else None for part in parts]
        places = {entry: place for place, entry in enumerate(whole)}
        first = 0 if calls[0] is None else calls[0].size
        places |= {entry: first + place for place, entry in enumerate(shallow)}
        rows = range(len(self._rows))
        return StepCall(
            rows=self._index(self._slots),
            offsets=self._index([slot * MAX_EVALUATIONS for slot in self._slots]),
            prompted=self._index([places[_Entry(i, True)] for i in rows]),
            partner=self._index([places.get(_Entry(i, False), places[_Entry(i, True)]) for i in rows]),
            prompts=self._prompts,
            whole=calls[0],
            shallow=calls[1],
            whole_rows=len(whole),
            shallow_rows=len(shallow),
            control_rows=sum(slot.active_controls for slot in self._call_slots(whole)),
            is_exact=_is_exact(self._rows),
        )

    def _pad(self, entries: list[_Entry]) -> list[_Entry]:
        # With all that belongs to it: what the deep blocks answer is kept for an entry and for its repetitions alike.
        missing = padded_size(len(entries), _sizes_for(self._rows, self._sizes)) - len(entries)
        return entries + entries[-1:] * missing

    def _lay_out_call(
        self,
        entries: list[_Entry],
        padded: list[_Entry],
        updates: Mapping[str, Factors] | None,
        slots: Mapping[_Entry, int],
    ) -> UNetCall:
        sizes = _sizes_for(self._rows, self._sizes)
        return UNetCall(
            owner=self._index([entry.owner for entry in padded]),
            rows=self._index([self._slots[entry.owner] for entry in padded]),
            prompts=self._index([slots[entry] for entry in padded]),
            deep=self._index([2 * self._slots[entry.owner] + (not entry.is_prompted) for entry in padded]),
            controls=plan_controls(self._call_slots(entries), sizes, self._model.device, self._model.dtype),
            keeps_deep=any(self._rows[entry.owner].keeps_deep for entry in entries),
            updates=updates,
            changed_rows=sum(self._is_changed(entry) for entry in entries),
            references=self._stack_references(padded),
        )

    def _stack_references(self, entries: list[_Entry]) -> StackedReferences | None:
        rows = [self._rows[entry.owner] for entry in entries]
        own = [row.reference if row.is_referring else None for row in rows]
        # To be exact, a call has them where some of its rows ever do, whatever step those are at.
        is_exact = _is_exact(self._rows)
        held = [each for each in ([row.reference for row in rows] if is_exact else own) if each is not None]
        if not held:
            return None
        tokens = EXACT_TOKENS if is_exact else max(reference.tokens for reference in held)
        pairs = zip(entries, own, strict=True)
        keys = [None if each is None else each.half(prompted=entry.is_prompted) for entry, each in pairs]
        return stack_references(keys, held[0].keys, tokens)

    def _loras(self, entry: _Entry) -> LoraSet | None:
        return self._rows[entry.owner].loras

    def _is_changed(self, entry: _Entry) -> bool:
        loras = self._loras(entry)
        return loras is not None and bool(loras.unet)

    def _call_slots(self, entries: Sequence[_Entry]) -> list[CallSlot]:
        return [
            CallSlot(place, row.controls, row.step, len(row.schedule), prompted=entry.is_prompted)
            for place, entry in enumerate(entries)
            for row in [self._rows[entry.owner]]
        ]

    def _prompt(self, entry: _Entry) -> EncodedPrompt:
        row = self._rows[entry.owner]
        if entry.is_prompted:
            return row.prompt
        assert row.negative is not None
        return row.negative

    def _index(self, values: Sequence[int]) -> Tensor:
        return copy_to_device(torch.tensor(values), self._model.device)
