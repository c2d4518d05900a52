"""Keeps the running rows of a bucket in slots of tensors that stay where they are, for the step to read and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from deployments.engine.conditioning.added_conditions import SIZES
from deployments.engine.conditioning.cross_attention import EncodedPrompt
from deployments.engine.conditioning.prompt_encoder import repeat_to
from deployments.engine.device.streams import copy_to_device
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.request import Bucket
from deployments.engine.row import Row
from deployments.engine.sampling.latents import STATE_SLOTS
from deployments.engine.steps.call_updates import UpdateStacks

if TYPE_CHECKING:
    from deployments.engine.steps.call import StepCall

MAX_EVALUATIONS: Final = 300
"""The longest schedule: 150 steps of a sampler that asks the model twice in each."""

TIMESTEP, INPUT_SCALE, GUIDANCE, SIGNAL, NOISE = range(5)
COEFFICIENTS: Final = 5
"""The columns of a slot's table: what one evaluation needs to know, the sampler's coefficients last."""

_COLUMNS: Final = COEFFICIENTS + 10


class Arena:
    """Everything that the steps of one bucket read and write, in fp32 on the model's device, S slots of it.

    `states` [S, STATE_SLOTS, C, h, w] are as in `latents.py`; `tables` [S, MAX_EVALUATIONS, 15] hold each row's
    schedule and guidance scales, and `steps` [S] how many evaluations it has had. `noise` [S, C, h, w] is what the
    current step drew. Where `mask` [S, 1, h, w] is 0, latents are put back to `image` and its first `image_noise`, both
    [S, C, h, w].
    `channels` [S, C + 1, h, w] is what an inpainting checkpoint sees beside the latents, and `guidance` [S, width] the
    embedded guidance scale, and `sizes` [S, 6] those of the images, in pixels; each None for models that have no such
    input. `deep` [S, 2, channels, h, w] is what the
    UNet's deep blocks answered last, with and without the prompt; None until a row needs it. `updates` are what the
    rows' LoRAs change in the UNet, and `latest` is the latest call: both as long as a row is in a slot.
    """

    def __init__(self, model: LoadedModel, bucket: Bucket, slots: int) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros((slots, *shape), device=model.device)

        latents = model.channels, bucket.height // model.factor, bucket.width // model.factor
        self.states = zeros(STATE_SLOTS, *latents)
        self.tables = zeros(MAX_EVALUATIONS, _COLUMNS)
        self.steps = torch.zeros(slots, dtype=torch.int64, device=model.device)
        self.noise, self.image, self.image_noise = zeros(*latents), zeros(*latents), zeros(*latents)
        self.mask = zeros(1, *latents[1:])
        self.channels = zeros(model.channels + 1, *latents[1:]) if model.inpaints_only else None
        self.deep: Tensor | None = None
        self._deep_shape = model.deep_channels, *latents[1:]
        self._dtype = model.dtype
        self.guidance = None if model.guidance_width is None else zeros(model.guidance_width)
        self.sizes = None if model.pooled_width is None else zeros(SIZES)
        self.updates = UpdateStacks(model)
        self.latest = LatestCall()
        self._prompts: dict[int, PromptSlots] = {}
        self._free = list(range(slots))[::-1]

    @property
    def size(self) -> int:
        """The number of slots."""
        return len(self.steps)

    @property
    def is_empty(self) -> bool:
        """True if no row is in a slot."""
        return len(self._free) == self.size

    @property
    def tensors(self) -> list[Tensor]:
        """All that slots are made of: tensors whose first index is the slot."""
        own = (self.states, self.tables, self.steps, self.noise, self.image, self.image_noise, self.mask)
        return [*own, *(each for each in (self.channels, self.guidance, self.sizes, self.deep) if each is not None)]

    @property
    def slot_bytes(self) -> int:
        """The bytes of one slot."""
        return sum(tensor[0].nbytes for tensor in self.tensors)

    def prompts(self, tokens: int) -> PromptSlots:
        """Returns the slots of the prompts that are `tokens` long."""
        return self._prompts.setdefault(tokens, PromptSlots(self.size, tokens))

    @torch.inference_mode()
    def add(self, row: Row) -> None:
        """Moves `row` into a free slot. Raises ValueError for a schedule longer than MAX_EVALUATIONS."""
        if len(row.schedule) > MAX_EVALUATIONS:
            raise ValueError(f"a schedule may have {MAX_EVALUATIONS} evaluations, not {len(row.schedule)}")
        index = self._free[-1]
        self.states[index] = row.state
        self.tables[index, : len(row.schedule)] = copy_to_device(_table_of(row), self.tables.device)
        self.steps[index] = row.step
        self.noise[index] = 0
        kept = row.blend
        self.image[index], self.image_noise[index] = (0, 0) if kept is None else (kept.image, kept.noise)
        self.mask[index] = 1 if kept is None else kept.mask
        if self.channels is not None and row.channels is not None:
            self.channels[index] = row.channels
        if self.guidance is not None:
            self.guidance[index] = 0 if row.guidance is None else row.guidance
        if self.sizes is not None and row.sizes is not None:
            self.sizes[index] = row.sizes
        if row.keeps_deep:
            if self.deep is None:
                self.deep = self.states.new_zeros((self.size, 2, *self._deep_shape), dtype=self._dtype)
            if row.deep is not None:
                self.deep[index] = row.deep
        row.slot = Slot(self, self._free.pop())

    @torch.inference_mode()
    def remove(self, row: Row) -> None:
        """Gives `row` its state back, and frees its slot."""
        assert row.slot is not None
        index, row.slot = row.slot.index, None
        row.state = self.states[index].clone()
        if self.deep is not None and row.keeps_deep:
            row.deep = self.deep[index].clone()
        self._free.append(index)
        if self.is_empty:
            # They can be as large as many rows, and the arena may stay.
            self.updates.clear()
            self.latest.clear()


@dataclass(slots=True)
class LatestCall:
    """The call that was laid out last for an arena, with all that it needs, and the `key` that it holds for."""

    key: tuple[object, ...] = ()
    call: StepCall | None = None

    def clear(self) -> None:
        self.key, self.call = (), None


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A running row's place: slot `index` of `arena`."""

    arena: Arena
    index: int

    @property
    def bytes(self) -> int:
        """The bytes of the slot."""
        return self.arena.slot_bytes

    def leave(self, row: Row) -> None:
        """Moves `row`, which is in this slot, out of it."""
        self.arena.remove(row)


class PromptSlots:
    """The latest prompts of one length, in slots: `keys` [S, tokens, width] for the UNet, `embeddings` for ControlNets,
    and `pooled` [S, width] for both, of models that are told the text as a whole.

    Shorter prompts are repeated once, when they come in.
    """

    def __init__(self, slots: int, tokens: int) -> None:
        self._slots, self.tokens = slots, tokens
        self._indices: dict[EncodedPrompt, int] = {}
        self.keys = self.embeddings = self.pooled = torch.empty(0)

    @torch.inference_mode()
    def place(self, prompts: Sequence[EncodedPrompt]) -> list[int]:
        """Returns the slots of `prompts`, which may repeat. Others may lose theirs. Raises ValueError for a length
        that cannot be repeated to the slots'.
        """
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._indices:
                self._write(prompt, self._find_slot(prompts))
        return [self._indices[prompt] for prompt in prompts]

    def _find_slot(self, wanted: Sequence[EncodedPrompt]) -> int:
        taken = set(self._indices.values())
        if len(taken) < self._slots:
            return next(index for index in range(self._slots) if index not in taken)
        return self._indices.pop(next(prompt for prompt in self._indices if prompt not in wanted))

    def _write(self, prompt: EncodedPrompt, index: int) -> None:
        keys, embedding = (repeat_to(each, self.tokens) for each in (prompt.keys, prompt.embedding))
        if not len(self.keys):
            self.keys, self.embeddings = (each.new_zeros((self._slots, *each.shape)) for each in (keys, embedding))
            if prompt.pooled is not None:
                self.pooled = prompt.pooled.new_zeros((self._slots, *prompt.pooled.shape))
        self.keys[index], self.embeddings[index] = keys, embedding
        if prompt.pooled is not None:
            self.pooled[index] = prompt.pooled
        self._indices[prompt] = index


def _table_of(row: Row) -> Tensor:
    """Returns the table [n, columns] of a row."""
    schedule = row.schedule
    guidance = torch.ones_like(schedule.timesteps)
    guidance[row.guided.start : row.guided.stop] = row.request.params.guidance_scale
    columns = [schedule.timesteps, schedule.input_scale, guidance]
    return torch.cat((torch.stack(columns, 1), schedule.noised, schedule.coefficients), 1)
