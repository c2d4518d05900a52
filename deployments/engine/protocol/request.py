"""A caller's request, complete, and the bucket of rows that may share a UNet call with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from deployments.engine.protocol.inputs import Inputs, PipelineKind, Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.sampler_names import SAMPLERS

NO_INPUTS: Final = Inputs()


@dataclass(frozen=True, slots=True)
class Bucket:
    """The key of rows that can share a UNet call: one model, one size (pixels)."""

    model: str
    height: int
    width: int

    def area_ratio(self, other: Bucket) -> float:
        """Returns this bucket's pixels per image, divided by the other's."""
        return self.height * self.width / (other.height * other.width)


@dataclass(frozen=True, slots=True)
class Request:
    """A caller's request, complete: `params` are effective ones and have a seed.

    `previews` is the number of previews of each image. `inputs` are the images that the request brings, at its own
    size; `uploads` are the files that a replica makes them of. `tenant` is the party that gets a fair share of the
    device. Where nobody reads it, `progress` is False: hundreds of events a second from a replica cost more than some
    images. No two running requests have the same `id`, so callers do not choose it; `name` is the caller's own, and
    several may have it. `seed_drawn` says that the seed is not the caller's own. The engine fills in what depends on
    the model: `own_evaluations`, the UNet evaluations of an image if the sampler is the checkpoint's own;
    `embeds_guidance`, if the UNet takes the guidance scale as an input instead of running a second time.
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
        """The diffusers pipeline that makes the same image."""
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
        """The rows of a UNet call that each image takes: two with classifier-free guidance (packed), else one."""
        return 2 if self.params.guidance_scale > 1 and not self.embeds_guidance else 1

    @property
    def evaluations(self) -> int:
        """The UNet evaluations of one image."""
        if self.own_evaluations is not None:
            return self.own_evaluations
        assert self.params.sampler is not None
        return SAMPLERS[self.params.sampler].evaluations(self.params.num_inference_steps, self.params.strength)

    def seed_of(self, index: int) -> int:
        """Returns the seed of image `index`."""
        assert self.params.seed is not None
        return self.params.seed + index

    def has_name(self, name: str, tenant: str) -> bool:
        """Returns True if it is that tenant's request of this name, or part of the one that has it."""
        return self.tenant == tenant and is_part_of(self.name, name)


def part_name(name: str, index: int) -> str:
    """Returns the name of part `index` of something. Callers' own names have no colon."""
    return f"{name}:{index}"


def is_part_of(name: str, whole: str) -> bool:
    """Returns True if `name` is `whole`, or the name of a part of it."""
    return name == whole or name.startswith(f"{whole}:")
