"""A request, and the rows that it becomes. All state of an image in the making lives on its `Row`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from deployments.engine.protocol.inputs import Inputs, PipelineKind, Uploads
from deployments.engine.protocol.params import GenerationParams

if TYPE_CHECKING:
    import torch

    from deployments.engine.conditioning.controlnet import Control
    from deployments.engine.conditioning.cross_attention import Prompt
    from deployments.engine.sampling.latents import Blend
    from deployments.engine.sampling.samplers import Schedule


NO_INPUTS: Final = Inputs()


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asked for, complete: `params` are effective ones and have a seed.

    `previews` is the number of cheap looks at each image that the caller wants on the way. `inputs` are the pictures
    that it brings, at the request's own size; `uploads` are the files that they will be made of, on a replica.
    `tenant` is who shares the device with others, each a fair part. Where nobody looks at it, `progress` is False:
    hundreds of events a second on their way from a replica cost more than some pictures. No two running requests have
    the same `id`, so callers do not choose it; `name` is what the caller calls it, and may be that of several.
    What its model makes of it is the engine's to fill in: `evaluations` of the UNet per image, where the sampler is the
    checkpoint's own; `embeds_guidance`, where the UNet is told the guidance scale instead of being run a second time.
    """

    id: str
    params: GenerationParams
    previews: int = 0
    inputs: Inputs = NO_INPUTS
    uploads: Uploads | None = None
    tenant: str = ""
    progress: bool = True
    name: str = ""
    evaluations: int | None = None
    embeds_guidance: bool = False

    @property
    def pipeline(self) -> PipelineKind:
        """Which of diffusers' pipelines makes the same picture."""
        return PipelineKind(self.inputs.task, bool(self.params.controls))

    @property
    def model(self) -> str:
        assert self.params.model_name is not None
        return self.params.model_name

    @property
    def bucket(self) -> Bucket:
        assert self.params.width is not None
        assert self.params.height is not None
        return Bucket(self.model, self.params.height, self.params.width)

    @property
    def unet_rows(self) -> int:
        """How many rows of a UNet call each image takes: with classifier-free guidance, two (packed guidance)."""
        return 2 if self.params.guidance_scale > 1 and not self.embeds_guidance else 1

    def seed_of(self, index: int) -> int:
        """The seed of image `index`."""
        assert self.params.seed is not None
        return self.params.seed + index

    def answers_to(self, name: str, tenant: str) -> bool:
        """Whether it is that tenant's request of this name, or part of what has it."""
        return self.tenant == tenant and is_part_of(self.name, name)


def part_of(name: str, index: int) -> str:
    """The name of a part of something. Callers' own names have no colon."""
    return f"{name}:{index}"


def is_part_of(name: str, whole: str) -> bool:
    """Whether `name` is `whole`, or that of a part of it."""
    return name == whole or name.startswith(f"{whole}:")


@dataclass(frozen=True, slots=True)
class Ticket:
    """Image `index` of `request` waits for a place, or has one; `due` is when nothing may go before it any more."""

    request: Request
    index: int
    due: float = 0.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows that can share a UNet call: one model, one size (pixels)."""

    model: str
    height: int
    width: int


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
    prompt: Prompt = field(repr=False)
    negative: Prompt | None = field(repr=False)
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
