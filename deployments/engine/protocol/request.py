"""What a caller asked for, complete, and the bucket of rows that may share a UNet call with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from deployments.engine.protocol.inputs import Inputs, PipelineKind, Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.sampler_names import SAMPLERS

NO_INPUTS: Final = Inputs()


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows that can share a UNet call: one model, one size (pixels)."""

    model: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asked for, complete: `params` are effective ones and have a seed.

    `previews` is the number of cheap looks at each image that the caller wants on the way. `inputs` are the pictures
    that it brings, at the request's own size; `uploads` are the files that they will be made of, on a replica.
    `tenant` is who shares the device with others, each a fair part. Where nobody looks at it, `progress` is False:
    hundreds of events a second on their way from a replica cost more than some pictures. No two running requests have
    the same `id`, so callers do not choose it; `name` is what the caller calls it, and may be that of several.
    `seed_drawn` says that the seed is not the caller's own.
    What its model makes of it is the engine's to fill in: `own_evaluations`, the UNet evaluations of an image where the
    sampler is the checkpoint's own; `embeds_guidance`, where the UNet is told the guidance scale instead of being run a
    second time.
    """

    id: str
    params: GenerationParams
    previews: int = 0
    inputs: Inputs = NO_INPUTS
    uploads: Uploads | None = None
    tenant: str = ""
    progress: bool = True
    name: str = ""
    own_evaluations: int | None = None
    embeds_guidance: bool = False
    seed_drawn: bool = False

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

    @property
    def evaluations(self) -> int:
        """UNet evaluations of one image."""
        if self.own_evaluations is not None:
            return self.own_evaluations
        assert self.params.sampler is not None
        return SAMPLERS[self.params.sampler].evaluations(self.params.num_inference_steps, self.params.strength)

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
