"""What requests say of one of a kind: a ControlNet, a LoRA, a reference, a second pass. No torch."""

import re
from typing import Annotated, Final, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from deployments.engine.protocol.fields import StrictFields, check_name

MAX_CONTROLS: Final = 4
MAX_LORAS: Final = 8
MAX_REFERENCES: Final = 4
MAX_STEPS: Final = 150
SIZE_STEP: Final = 8

UpscalerName = Annotated[str, StringConstraints(min_length=1, max_length=64)]

# What `<lora:name:weight>` and paths give a meaning to.
_NAME: Final = re.compile(r"[^.<>:/\\\s][^<>:/\\]{0,99}")

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ControlSettings(StrictFields):
    """Settings of one ControlNet: its `type` (canny, depth, ...), how strongly it acts, and from where to where.

    `start` and `end` are shares of the steps. Its hint, an image, comes beside the parameters; with `preprocess` it is
    a photo that the hint is made from.
    """

    type: str = Field(max_length=64)
    scale: float = Field(default=1.0, ge=0.0, le=2.0)
    start: Share = 0.0
    end: Share = 1.0
    preprocess: bool = False

    @field_validator("type")
    @classmethod
    def _check_type(cls, kind: str) -> str:
        return check_name(kind)

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.start >= self.end:
            raise ValueError("start must be less than end")
        return self


class HiresSettings(StrictFields):
    """A second pass over a larger image: the first one's result is enlarged `scale` times by `upscaler`, and denoised
    again from `strength` on, as image-to-image does.

    The upscaler `latent` enlarges its latents, `lanczos` or a network of the configuration's its pixels. `steps` are
    those of the whole schedule, of which `strength` leaves a share; None takes the first pass's.
    """

    scale: float = Field(default=2.0, gt=1.0, le=4.0)
    upscaler: UpscalerName = "latent"
    strength: float = Field(default=0.7, gt=0.0, le=1.0)
    steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)

    @field_validator("upscaler")
    @classmethod
    def _check_upscaler(cls, name: str) -> str:
        return check_name(name)

    def enlarge(self, pixels: int) -> int:
        """Returns the side that becomes of one of `pixels`, in whole steps."""
        return round(pixels * self.scale / SIZE_STEP) * SIZE_STEP


class ReferenceSettings(StrictFields):
    """What a request's reference images do: an IP-Adapter (Ye et al. 2023) makes pictures take after them.

    `adapter` names one of the model's; None is for models that have just one. `scale` is how strongly it acts, 0 not at
    all, and `start` and `end`, shares of the steps, from where to where. `weights` are those of the images, in their
    order, 1 where none are given: the values that attention finds for an image are multiplied by its weight.
    """

    adapter: str | None = Field(default=None, max_length=64)
    scale: float = Field(default=1.0, ge=0.0, le=2.0)
    start: Share = 0.0
    end: Share = 1.0
    # Not strict: JSON has lists and no tuples.
    weights: tuple[Annotated[float, Field(ge=0.0, le=2.0)], ...] = Field(
        default=(), max_length=MAX_REFERENCES, strict=False
    )

    @field_validator("adapter")
    @classmethod
    def _check_adapter(cls, name: str | None) -> str | None:
        return None if name is None else check_name(name)

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.start >= self.end:
            raise ValueError("start must be less than end")
        return self


class LoraSettings(StrictFields):
    """A LoRA of a request: its `name` in the server's registry, and how strongly it acts. 1 is as it was trained, 0 not
    at all; below 0 it does the opposite.
    """

    name: Annotated[str, Field(max_length=100)]
    scale: float = Field(default=1.0, ge=-4.0, le=4.0)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_lora_name(name)


def check_lora_name(name: str) -> str:
    """Returns `name`. Raises ValueError, which states the rule, if it could be a path, or a part of a prompt's tag."""
    if _NAME.fullmatch(name) is None:
        raise ValueError("must be a name of at most 100 characters, not a path, and without any of < > : / \\")
    return check_name(name)
