"""The parameters that a caller may set, validated. No torch.

`GenerationParams` is what was asked: a field left out is `None` where its default depends on the model.
`effective_params` fills those in from the model's `ModelSpec`; everything behind it works on complete parameters.
"""

from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Task
from deployments.engine.protocol.sampler_names import resolve_sampler
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.protocol.texts import check_lines, check_name

MAX_SEED = 2**63 - 1
MIN_SIDE, MAX_SIDE, SIZE_STEP = 64, 2048, 8
MAX_CONTROLS = 4

OutputFormat = Literal["png", "webp", "jpeg"]
Priority = Literal["low", "normal", "high"]
CacheUse = Literal["default", "reuse", "refresh", "off"]
Prompt = Annotated[str, StringConstraints(max_length=8_000)]
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=SIZE_STEP)]

IMAGE_FIELDS: Final = frozenset(("strength", "mask_feather", "controls", "guess_mode"))
"""Parameters that mean something only in requests that bring images."""

SERVICE_FIELDS: Final = frozenset(("priority", "deadline_ms", "cache"))
"""How a request is served; its images do not depend on these."""


# Above it one float may stand for several integers.
_LAST_EXACT: Final = 2**53


class StrictFields(BaseModel):
    """A model with strict fields; but null is the same as leaving an optional field out, and 128.0 is 128."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, data: Any) -> Any:
        return normalise_fields(data, cls) if isinstance(data, dict) else data


def normalise_fields(data: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Returns `data` as `model` takes it: without optional fields that are null, and with whole numbers as
    integers.
    """
    read = {}
    for name, value in data.items():
        field = model.model_fields.get(name)
        if field is None or value is not None or field.is_required():
            read[name] = _as_whole(value) if field is not None and _is_whole(field.annotation) else value
    return read


def _as_whole(value: Any) -> Any:
    """Converts a float that is a whole number to an integer; other values stay, for the field's own rule to refuse."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) <= _LAST_EXACT
    return int(value) if whole else value


def _is_whole(annotation: Any) -> bool:
    return annotation is int or any(_is_whole(part) for part in get_args(annotation))


class ControlSettings(StrictFields):
    """Settings of one ControlNet: its `type` (canny, depth, ...), how strongly it acts, and from where to where.

    `start` and `end` are shares of the steps. Its hint, an image, comes beside the parameters.
    """

    type: str = Field(max_length=64)
    scale: float = Field(default=1.0, ge=0.0, le=2.0)
    start: float = Field(default=0.0, ge=0.0, le=1.0)
    end: float = Field(default=1.0, ge=0.0, le=1.0)

    @field_validator("type")
    @classmethod
    def _check_type(cls, kind: str) -> str:
        return check_name(kind)

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.start >= self.end:
            raise ValueError("start must be less than end")
        return self


class GenerationParams(StrictFields):
    """The parameters of one request. Frozen; unknown fields and wrong types are refused.

    Sizes are pixels. `seed` is that of the first image, image i uses `seed + i`; `None` or -1 draws one.
    `guidance_scale` <= 1 switches classifier-free guidance off (Ho and Salimans, 2022). `style_preset` is the name of a
    known style, or free text that is appended to the prompt. `clip_skip` counts the text encoder's last layers that are
    skipped for the prompt, as in diffusers. `strength` is how far image-to-image and inpaint depart from the given
    image: 1 is all the way. `mask_feather` (pixels) softens the inside of the mask's edge. `controls` are the
    ControlNets, each with its hint; with `guess_mode` they act on the prompted half only, and the early maps less
    (Zhang et al. 2023). `priority` decides who waits for whom. A request whose images cannot be ready `deadline_ms`
    after its arrival is refused, at once if that can be predicted, and dropped at the deadline if not. A request
    without a seed is made anew each time, unless `cache` says `reuse`: then an earlier result of any seed will do.
    `refresh` makes and keeps a new result, `off` bypasses the cache.
    """

    prompt: Prompt
    negative_prompt: Prompt = ""
    width: Side | None = None
    height: Side | None = None
    num_images: int = Field(default=1, ge=1, le=16)
    guidance_scale: float = Field(default=7.5, ge=0.0, le=50.0)
    num_inference_steps: int = Field(default=50, ge=1, le=150)
    seed: int | None = Field(default=None, ge=-1, le=MAX_SEED - 64)
    model_name: str | None = Field(default=None, max_length=200)
    style_preset: str | None = Field(default=None, max_length=1_000)
    sampler: str | None = Field(default=None, max_length=64)
    clip_skip: int = Field(default=0, ge=0, le=12)
    strength: float | None = Field(default=None, gt=0.0, le=1.0)
    mask_feather: int = Field(default=0, ge=0, le=256)
    # Not strict: JSON has lists and no tuples.
    controls: tuple[ControlSettings, ...] = Field(default=(), max_length=MAX_CONTROLS, strict=False)
    guess_mode: bool = False
    output_format: OutputFormat = "png"
    priority: Priority = "normal"
    deadline_ms: int | None = Field(default=None, ge=1, le=3_600_000)
    cache: CacheUse = "default"

    @field_validator("prompt", "negative_prompt", "style_preset")
    @classmethod
    def _check_texts(cls, text: str | None) -> str | None:
        return None if text is None else check_lines(text)

    @field_validator("model_name", "sampler")
    @classmethod
    def _check_names(cls, name: str | None) -> str | None:
        return None if name is None else check_name(name)

    @field_validator("controls", mode="before")
    @classmethod
    def _check_count(cls, controls: Any) -> Any:
        """Checks the count before the entries: pydantic would report every one of a hundred thousand."""
        if isinstance(controls, list | tuple) and len(controls) > MAX_CONTROLS:
            raise PydanticCustomError("too_long", "too many controls", {"max_length": MAX_CONTROLS})
        return controls

    @field_validator("sampler")
    @classmethod
    def _resolve_sampler(cls, sampler: str | None) -> str | None:
        if sampler is None:
            return None
        try:
            return resolve_sampler(sampler)
        except InvalidParameter as error:
            raise ValueError(error.message) from None


_STRENGTHS: Final[dict[Task, float | None]] = {"text-to-image": None, "image-to-image": 0.8, "inpaint": 1.0}
"""diffusers' defaults."""


def effective_params(params: GenerationParams, spec: ModelSpec, task: Task = "text-to-image") -> GenerationParams:
    """Returns `params` with every default of the model and the task filled in, checked against the model's limits.

    Raises InvalidParameter for a size beyond the model's limit, and for parameters that the task does not use. The seed
    is left as it is: the service draws it, because that must happen once, before caching and replays.
    """
    native_height, native_width = spec.native
    width = params.width or native_width
    height = params.height or native_height
    if width * height > spec.max_pixels:
        raise InvalidParameter(
            "width", f"width x height must be at most {spec.max_pixels} pixels for this model, got {width * height}"
        )
    _check_task(params, task)
    defaults: dict[str, Any] = {"width": width, "height": height, "model_name": spec.name}
    if params.sampler is None:
        defaults["sampler"] = resolve_sampler(spec.default_sampler)
    if params.strength is None:
        defaults["strength"] = _STRENGTHS[task]
    return params.model_copy(update=defaults)


def _check_task(params: GenerationParams, task: Task) -> None:
    if params.strength is not None and task == "text-to-image":
        raise InvalidParameter("strength", "is for image-to-image and inpaint only")
    if params.mask_feather and task != "inpaint":
        raise InvalidParameter("mask_feather", "is for inpaint only")
    if params.guess_mode and not params.controls:
        raise InvalidParameter("guess_mode", "is for requests with a ControlNet only")
