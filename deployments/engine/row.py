"""Rows and tickets: an image being made, with all its state, and an image's claim to a place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deployments.engine.protocol.request import Request

if TYPE_CHECKING:
    import torch

    from deployments.engine.conditioning.controlnet import Control
    from deployments.engine.conditioning.cross_attention import EncodedPrompt
    from deployments.engine.ip_adapter.reference import Reference
    from deployments.engine.lora.rows.lora_set import LoraSet
    from deployments.engine.sampling.latents import Blend
    from deployments.engine.sampling.samplers import Schedule
    from deployments.engine.steps.arena import Slot


@dataclass(frozen=True, slots=True)
class Ticket:
    """The claim of image `index` of `request` to a place. From `due` on (the queue's clock) nothing may overtake it."""

    request: Request
    index: int
    due: float = 0.0


@dataclass(slots=True, eq=False)
class Row:
    """One image being made.

    `state` is [STATE_SLOTS, C, h, w] in fp32: the newest inputs and outputs, and the sampler's newest answer, as laid
    out in `latents.py`. From its first step on until it leaves, a row has a `slot`, and its state is there. `negative`
    is None for a row without classifier-free guidance; `guided` are the evaluations that have it. `step` counts
    finished evaluations. `noise` is what the current step drew, kept so that retrying the step does not draw again.
    `due` is the queue's, kept in case the row is preempted; `was_restarted` says that the image was not finite once and
    began again. `blend` is what an inpaint row puts back after every step; `channels` [5, h, w] is what an inpainting
    checkpoint sees beside the latents instead. `guidance` is the embedding of the guidance scale, for a UNet that takes
    it, and `sizes` [6] are those that a network of Stable Diffusion XL's kind is told. `deep` is what the UNet's deep
    blocks answered last, with and without the prompt, of a row that is in no slot. `steps_before` and `steps_after` are
    the evaluations of the image's other pass, if there is one. `loras` are what it changes in the UNet, and `reference`
    what its cross-attention sees beside the prompts.
    `first_step` are the evaluations that it took over from another image. `epoch` is that of the saved states when its
    request began.
    """

    request: Request
    index: int
    schedule: Schedule
    generator: torch.Generator
    state: torch.Tensor = field(repr=False)
    prompt: EncodedPrompt = field(repr=False)
    negative: EncodedPrompt | None = field(repr=False)
    guided: range = range(0)
    controls: tuple[Control, ...] = ()
    blend: Blend | None = field(default=None, repr=False)
    channels: torch.Tensor | None = field(default=None, repr=False)
    guidance: torch.Tensor | None = field(default=None, repr=False)
    sizes: torch.Tensor | None = field(default=None, repr=False)
    step: int = 0
    due: float = 0.0
    was_restarted: bool = False
    noise: torch.Tensor | None = field(default=None, repr=False)
    deep: torch.Tensor | None = field(default=None, repr=False)
    slot: Slot | None = field(default=None, repr=False)
    steps_before: int = 0
    steps_after: int = 0
    loras: LoraSet | None = field(default=None, repr=False)
    reference: Reference | None = field(default=None, repr=False)
    first_step: int = 0
    epoch: int = 0

    @property
    def own_steps(self) -> int:
        """The evaluations that were made for it."""
        return self.step - self.first_step

    @property
    def progress(self) -> tuple[int, int]:
        """The evaluations that the image has had, and all that it takes."""
        return self.steps_before + self.step, self.steps_before + len(self.schedule) + self.steps_after

    @property
    def is_done(self) -> bool:
        return self.step >= len(self.schedule)

    @property
    def ticket(self) -> Ticket:
        """The ticket that the row was admitted with."""
        return Ticket(self.request, self.index, self.due)

    @property
    def bytes(self) -> int:
        """Bytes held for the row between steps, without its prompts, LoRAs and reference, which others may share."""
        held = [self.state, self.channels, self.deep, *(control.hint for control in self.controls)]
        if self.blend is not None:
            held += [self.blend.image, self.blend.noise, self.blend.mask]
        more = 0 if self.slot is None else self.slot.bytes
        return more + sum(tensor.nbytes for tensor in held if tensor is not None)

    @property
    def is_plain(self) -> bool:
        """True if its part of a UNet call takes what that of any other row does, and nothing besides."""
        return self.loras is None and self.reference is None and not self.controls

    @property
    def is_guided(self) -> bool:
        """True if its next evaluation has classifier-free guidance."""
        return self.step in self.guided

    @property
    def is_referring(self) -> bool:
        """True if its reference acts on its next evaluation."""
        return self.reference is not None and self.reference.is_active(self.step, len(self.schedule))

    @property
    def unet_rows(self) -> int:
        """The rows of a UNet call that its next evaluation takes."""
        return 2 if self.is_guided else 1

    @property
    def keeps_deep(self) -> bool:
        """True if it uses what the UNet's deep blocks answered in an earlier evaluation."""
        return self.request.params.deep_cache > 1

    @property
    def is_shallow(self) -> bool:
        """True if its next evaluation leaves the UNet's deep blocks out: they have answered to all that it needs."""
        return not self.request.is_whole(self.step, self.guided)

    @property
    def most_unet_rows(self) -> int:
        """The most rows of a UNet call that any of its evaluations to come takes."""
        return 2 if self.step < self.guided.stop else 1

    def leave_slot(self) -> None:
        """Takes its state out of its slot, if it has one."""
        if self.slot is not None:
            self.slot.leave(self)

    def is_preview_due(self) -> bool:
        """Returns True if a preview is due after the step just finished: previews are spread evenly over the steps."""
        wanted, steps = self.request.previews, len(self.schedule)
        if not wanted or self.is_done:
            return False
        return self.step * (wanted + 1) // steps > (self.step - 1) * (wanted + 1) // steps
