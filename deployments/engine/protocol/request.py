"""A caller's request, complete, and the bucket of rows that may share a UNet call with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from deployments.engine.protocol.files.embeddings import EmbeddingFile
from deployments.engine.protocol.files.loras import LoraUse
from deployments.engine.protocol.inputs import Inputs, PictureMark, PipelineKind, Uploads
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.sampler_names import SAMPLERS

NO_INPUTS: Final = Inputs()


SHALLOW_WORK: Final = 0.25
"""What a row of a UNet call without its deep blocks is worth, in rows of whole ones: 0.23 by SD1.5's operations."""


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
    device. At least `progress_interval_s` seconds lie between two `Progress`, and there is none where it is None:
    hundreds of events a second from a replica cost more than some images. No two running requests have the same `id`,
    so callers do not choose it; `name` is the caller's own, and several may have it. `seed_drawn` says that the seed is
    not the caller's own. `mark` is made in every finished picture; previews have none. `loras` are the files that
    `params.loras` name, without those that have no effect; `embeddings` those that the prompts name. The engine fills
    in what depends on the model: `own_evaluations`, the UNet evaluations of an image if the sampler is the checkpoint's
    own; `embeds_guidance`, if the UNet takes the guidance scale as an input instead of running a second time.
    """

    id: str
    params: GenerationParams
    previews: int = 0
    inputs: Inputs = NO_INPUTS
    uploads: Uploads | None = None
    tenant: str = ""
    progress_interval_s: float | None = 0.0
    name: str = ""
    own_evaluations: int | None = None
    embeds_guidance: bool = False
    seed_drawn: bool = False
    mark: PictureMark | None = None
    loras: tuple[LoraUse, ...] = ()
    embeddings: tuple[EmbeddingFile, ...] = ()

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
    def picture_size(self) -> tuple[int, int]:
        """Width and height of the finished pictures in pixels."""
        if self.params.output_size is not None:
            return self.params.output_size
        if self.inputs.whole is not None:
            height, width = self.inputs.whole.mask.shape
            return width, height
        return self.bucket.width, self.bucket.height

    @property
    def unet_rows(self) -> int:
        """The most rows of a UNet call that an image takes: two with classifier-free guidance (packed), else one."""
        return 2 if self.params.guidance_scale > 1 and not self.embeds_guidance else 1

    @property
    def evaluations(self) -> int:
        """The UNet evaluations of one image."""
        if self.own_evaluations is not None:
            return self.own_evaluations
        assert self.params.sampler is not None
        return SAMPLERS[self.params.sampler].evaluations(self.params.num_inference_steps, self.params.strength)

    @property
    def second_pass(self) -> Request | None:
        """The request of its second pass, as the first one's images continue; None if it has none. Without hints."""
        hires = self.params.hires
        if hires is None:
            return None
        bucket = self.bucket
        changed = {
            "width": hires.enlarge(bucket.width),
            "height": hires.enlarge(bucket.height),
            "strength": hires.strength,
            "num_inference_steps": hires.steps or self.params.num_inference_steps,
            "hires": None,
        }
        params = self.params.model_copy(update=changed)
        own = self.own_evaluations
        if own is not None:
            own = max(1, round(own * params.num_inference_steps / self.params.num_inference_steps * hires.strength))
        # Previews are the first pass's: in the second there is little more to see.
        return replace(self, params=params, previews=0, inputs=NO_INPUTS, uploads=None, own_evaluations=own)

    @property
    def encoded_bucket(self) -> Bucket | None:
        """The size in which the VAE encodes its first pass's picture, enlarged; None if it encodes none."""
        hires, second = self.params.hires, self.second_pass
        return None if hires is None or second is None or hires.upscaler == "latent" else second.bucket

    @property
    def later_evaluations(self) -> float:
        """The UNet evaluations of one image's second pass, each worth as many as its size has of this one's."""
        second = self.second_pass
        return 0.0 if second is None else second.evaluations * second.bucket.area_ratio(self.bucket)

    @property
    def work(self) -> float:
        """The rows of whole UNet calls that one image is worth, those of a second pass by their size."""
        second = self.second_pass
        more = 0.0 if second is None else second.work * second.bucket.area_ratio(self.bucket)
        guided = self.guided_evaluations(self.evaluations)
        rows = [1 + (i in guided) for i in range(self.evaluations)]
        return more + sum(count if self.is_whole(i, guided) else SHALLOW_WORK * count for i, count in enumerate(rows))

    def is_whole(self, evaluation: int, guided: range) -> bool:
        """Returns True if an evaluation runs the whole UNet, whose deep blocks must have answered to both prompts."""
        return evaluation % self.params.deep_cache == 0 or evaluation == guided.start

    def guided_evaluations(self, evaluations: int) -> range:
        """Returns the indices of the guided ones of an image's `evaluations`."""
        if self.unet_rows == 1:
            return range(0)
        first, last = self.params.guidance_interval or (0.0, 1.0)
        inside = [i for i in range(evaluations) if first <= i / evaluations and (i + 1) / evaluations <= last]
        return range(inside[0], inside[-1] + 1) if inside else range(0)

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
