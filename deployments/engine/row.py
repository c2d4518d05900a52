"""The rows that a request becomes. All state of an image in the making lives on its `Row`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deployments.engine.protocol.request import Request

if TYPE_CHECKING:
    import torch

    from deployments.engine.conditioning.controlnet import Control
    from deployments.engine.conditioning.cross_attention import EncodedPrompt
    from deployments.engine.sampling.latents import Blend
    from deployments.engine.sampling.samplers import Schedule


@dataclass(frozen=True, slots=True)
class Ticket:
    """Image `index` of `request` waits for a place, or has one; `due` is when nothing may go before it any more."""

    request: Request
    index: int
    due: float = 0.0


@dataclass(slots=True, eq=False)
class Row:
    """One image being made.

    `state` is [STATE_SLOTS, C, h, w] in fp32: the newest inputs, the newest outputs, and the newest answer of the
    sampler; its meaning is `latents.py`'s. `negative` is None for a row without classifier-free guidance. `step` counts
    finished evaluations. `noise` is what the step in progress drew, kept so that a step which is tried again does not
    draw twice. `due` is the queue's, kept for the case that it has to make way; `restarted` says that it was not
    finite once and has begun anew. `blend` is what an inpaint row puts back after every step; `channels` [5, h, w] is
    what an inpainting checkpoint sees beside the latents instead. `guidance` is the embedding of the guidance scale,
    for a UNet that is told it.
    """

    request: Request
    index: int
    schedule: Schedule
    generator: torch.Generator
    state: torch.Tensor = field(repr=False)
    prompt: EncodedPrompt = field(repr=False)
    negative: EncodedPrompt | None = field(repr=False)
    controls: tuple[Control, ...] = ()
    blend: Blend | None = field(default=None, repr=False)
    channels: torch.Tensor | None = field(default=None, repr=False)
    guidance: torch.Tensor | None = field(default=None, repr=False)
    step: int = 0
    due: float = 0.0
    restarted: bool = False
    noise: torch.Tensor | None = field(default=None, repr=False)

    @property
    def done(self) -> bool:
        return self.step >= len(self.schedule)

    @property
    def ticket(self) -> Ticket:
        """Its place in the queue's eyes."""
        return Ticket(self.request, self.index, self.due)

    @property
    def bytes(self) -> int:
        """What is held for it between steps, besides its prompts, which others may share."""
        held = [self.state, self.channels, *(control.hint for control in self.controls)]
        if self.blend is not None:
            held += [self.blend.image, self.blend.noise, self.blend.mask]
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def previews_now(self) -> bool:
        """Whether a preview is due after the step just finished: the request's number of them, evenly spread."""
        wanted, steps = self.request.previews, len(self.schedule)
        if not wanted or self.done:
            return False
        return self.step * (wanted + 1) // steps > (self.step - 1) * (wanted + 1) // steps
