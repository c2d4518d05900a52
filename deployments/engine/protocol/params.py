"""The parameters that a caller may set, validated. No torch.

`GenerationParams` is what was asked: a field left out is `None` where its default depends on the model.
`effective_params` fills those in from the model's `ModelSpec`; everything behind it works on complete parameters.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_serializer, field_validator
from pydantic_core import PydanticCustomError

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.fields import StrictFields, check_lines, check_name
from deployments.engine.protocol.inputs import Task
from deployments.engine.protocol.sampler_names import resolve_sampler
from deployments.engine.protocol.settings import (
    MAX_CONTROLS,
    MAX_LORAS,
    MAX_STEPS,
    SIZE_STEP,
    ControlSettings,
    HiresSettings,
    LoraSettings,
    ReferenceSettings,
    Share,
)
from deployments.engine.protocol.spec import ModelSpec

MAX_SEED = 2**63 - 1
MIN_SIDE, MAX_SIDE = 64, 2048
MAX_VALUES = 32

OutputFormat = Literal["png", "webp", "jpeg"]
Metadata = Literal["full", "minimal", "none"]
Priority = Literal["low", "normal", "high"]
CacheUse = Literal["default", "reuse", "similar", "refresh", "off"]
MaskFill = Literal["original", "surroundings", "noise", "zero"]
Prompt = Annotated[str, StringConstraints(max_length=8_000)]
TemplateValue = Annotated[str, StringConstraints(max_length=1_000)]
OutputSide = Annotated[int, Field(ge=16, le=4096)]
OutputFit = Literal["cover", "pad"]
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=SIZE_STEP)]

BUILT_IN_UPSCALERS: Final = ("latent", "lanczos")
"""What enlarges an image between its two passes, besides the networks of the configuration."""

INPAINT_FIELDS: Final = frozenset(("mask_feather", "mask_inverted", "mask_fill", "padding_mask_crop"))
"""Parameters that mean something only in requests with a mask."""

IMAGE_FIELDS: Final = frozenset(("strength", "controls", "guess_mode", *INPAINT_FIELDS))
"""Parameters that mean something only in requests that bring images."""

SERVICE_FIELDS: Final = frozenset(("priority", "deadline_ms", "cache"))
"""How a request is served; its images do not depend on these, unless they continue others'."""


class GenerationParams(StrictFields):
    """The parameters of one request. Frozen; unknown fields and wrong types are refused.

    Sizes are pixels. `seed` is that of the first image, image i uses `seed + i`; `None` or -1 draws one.
    `guidance_scale` <= 1 switches classifier-free guidance off (Ho and Salimans, 2022). `style_preset` is the name of a
    known style, or free text that is appended to the prompt. `clip_skip` counts the text encoder's last layers that are
    skipped for the prompt, as in diffusers. `strength` is how far image-to-image and inpaint depart from the given
    image: 1 is all the way. `mask_feather` (pixels) softens the inside of the mask's edge. With `mask_inverted` the
    mask says what is kept. `mask_fill` is what the masked part begins from where `strength` leaves a trace of it: the
    `original`, the colours of its `surroundings`, latent `noise`, or `zero` latents. With `padding_mask_crop` (pixels)
    only the masked part and that much around it is made, at width x height, and pasted back into the image at its own
    size, as diffusers' parameter of this name does. `controls` are the ControlNets, each with its hint; with
    `guess_mode` they act on the prompted half only, and the early maps less (Zhang et al. 2023). `reference` says what
    reference images do, which come beside it. `loras` change the model for this request alone, all at once. `priority`
    decides who waits for whom. A request whose images cannot be ready `deadline_ms` after its arrival is refused, at
    once if that can be predicted, and dropped at the deadline if not. A request without a seed is made anew each time,
    unless `cache` says `reuse`: then an earlier result of any seed will do; or `similar`, and where there is none the
    images may continue the early states of others whose prompts were near. `refresh` makes and keeps a new result,
    `off` bypasses the cache. With `exact` all steps run at one fixed size of batch, so that the image's bytes do not
    depend on what runs beside it; that costs more. `guidance_interval` limits guidance to the steps from one share of
    them to another (Kynkäänniemi et al. 2024): the others take half the work, and the image is another one. With
    `deep_cache` n, the UNet's deep blocks run in every n-th step only (Ma, Fang and Wang, 2023): quicker, and another
    image as well. `hires` adds a second pass over a larger image, which is the result; for requests that start from no
    image. `output_size` (width and height in pixels, of any shape) is what the finished image is resized to:
    `output_fit` crops it to that shape, or pads it. `ad_format` is the name of such a size. `local_contrast`,
    `contrast` and `sharpen` touch up what was made, in this order; 0, 1 and 0 leave it as it is. `template` is the name
    of a prompt with places, which `template_values` fill by their names. `output_quality` is that of a lossy file.
    `metadata` says how much a file tells of how it was made: `minimal` leaves out the prompts; None is the server's own
    choice.
    """

    prompt: Prompt
    negative_prompt: Prompt = ""
    width: Side | None = None
    height: Side | None = None
    num_images: int = Field(default=1, ge=1, le=16)
    guidance_scale: float = Field(default=7.5, ge=0.0, le=50.0)
    num_inference_steps: int = Field(default=50, ge=1, le=MAX_STEPS)
    seed: int | None = Field(default=None, ge=-1, le=MAX_SEED - 64)
    model_name: str | None = Field(default=None, max_length=200)
    style_preset: str | None = Field(default=None, max_length=1_000)
    sampler: str | None = Field(default=None, max_length=64)
    clip_skip: int = Field(default=0, ge=0, le=12)
    strength: float | None = Field(default=None, gt=0.0, le=1.0)
    mask_feather: int = Field(default=0, ge=0, le=256)
    mask_inverted: bool = False
    mask_fill: MaskFill = "original"
    padding_mask_crop: int | None = Field(default=None, ge=0, le=1024)
    # Not strict: JSON has lists and no tuples.
    controls: tuple[ControlSettings, ...] = Field(default=(), max_length=MAX_CONTROLS, strict=False)
    guess_mode: bool = False
    reference: ReferenceSettings | None = None
    # Not strict: JSON has lists and no tuples.
    loras: tuple[LoraSettings, ...] = Field(default=(), max_length=MAX_LORAS, strict=False)
    output_format: OutputFormat = "png"
    output_quality: int | None = Field(default=None, ge=0, le=100)
    metadata: Metadata | None = None
    priority: Priority = "normal"
    deadline_ms: int | None = Field(default=None, ge=1, le=3_600_000)
    cache: CacheUse = "default"
    exact: bool = False
    # Not strict: JSON has lists and no tuples.
    guidance_interval: tuple[Share, Share] | None = Field(default=None, strict=False)
    deep_cache: int = Field(default=1, ge=1, le=10)
    hires: HiresSettings | None = None
    # Not strict: JSON has lists and no tuples.
    output_size: tuple[OutputSide, OutputSide] | None = Field(default=None, strict=False)
    output_fit: OutputFit = "cover"
    local_contrast: float = Field(default=0.0, ge=0.0, le=8.0)
    contrast: float = Field(default=1.0, ge=0.0, le=2.0)
    sharpen: float = Field(default=0.0, ge=0.0, le=2.0)
    ad_format: str | None = Field(default=None, max_length=64)
    template: str | None = Field(default=None, max_length=64)
    # Pairs, which can be hashed as the others can. Not strict: JSON has lists and no tuples.
    template_values: tuple[tuple[str, TemplateValue], ...] = Field(default=(), max_length=MAX_VALUES, strict=False)

    @field_validator("prompt", "negative_prompt", "style_preset")
    @classmethod
    def _check_texts(cls, text: str | None) -> str | None:
        return None if text is None else check_lines(text)

    @field_validator("model_name", "sampler", "ad_format", "template")
    @classmethod
    def _check_names(cls, name: str | None) -> str | None:
        return None if name is None else check_name(name)

    @field_validator("template_values", mode="before")
    @classmethod
    def _read_values(cls, values: Any) -> Any:
        """Reads an object of names and texts; pairs are what this has made of one."""
        if isinstance(values, dict):
            return tuple(sorted(values.items())) if len(values) <= MAX_VALUES else tuple(values.items())
        return values

    @field_validator("template_values")
    @classmethod
    def _check_values(cls, values: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for name, value in values:
            check_name(name)
            check_lines(value)
        return values

    @field_serializer("template_values")
    def _write_values(self, values: tuple[tuple[str, str], ...]) -> dict[str, str]:
        return dict(values)

    @field_validator("controls", "loras", mode="before")
    @classmethod
    def _check_count(cls, entries: Any, info: ValidationInfo) -> Any:
        """Checks the count before the entries: pydantic would report every one of a hundred thousand."""
        most = MAX_CONTROLS if info.field_name == "controls" else MAX_LORAS
        if isinstance(entries, list | tuple) and len(entries) > most:
            raise PydanticCustomError("too_long", "too many entries", {"max_length": most})
        return entries

    @field_validator("loras")
    @classmethod
    def _check_names_differ(cls, loras: tuple[LoraSettings, ...]) -> tuple[LoraSettings, ...]:
        if len({lora.name for lora in loras}) < len(loras):
            raise ValueError("must not have a name twice")
        return loras

    @field_validator("output_size")
    @classmethod
    def _check_output_size(cls, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is not None and size[0] * size[1] > MAX_SIDE * MAX_SIDE:
            raise ValueError(f"must have at most {MAX_SIDE * MAX_SIDE} pixels in all")
        return size

    @field_validator("guidance_interval")
    @classmethod
    def _check_interval(cls, interval: tuple[float, float] | None) -> tuple[float, float] | None:
        if interval is not None and interval[0] >= interval[1]:
            raise ValueError("the first share must be less than the second")
        return interval

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
    if params.cache == "similar":
        _check_similar(params, task)
    if params.hires is not None:
        _check_hires(params.hires, width, height, spec)
    defaults: dict[str, Any] = {"width": width, "height": height, "model_name": spec.name}
    for name, default in (
        ("num_inference_steps", spec.default_steps),
        ("guidance_scale", spec.default_guidance_scale),
    ):
        if default is not None and name not in params.model_fields_set:
            defaults[name] = default
    if params.sampler is None:
        defaults["sampler"] = resolve_sampler(spec.default_sampler)
    if params.strength is None:
        defaults["strength"] = _STRENGTHS[task]
    if params.output_quality is not None and params.output_format == "png":
        raise InvalidParameter("output_quality", "is for webp and jpeg only: a png loses nothing")
    return params.model_copy(update=defaults)


def _check_hires(hires: HiresSettings, width: int, height: int, spec: ModelSpec) -> None:
    larger = hires.enlarge(width), hires.enlarge(height)
    if max(larger) > MAX_SIDE or larger[0] * larger[1] > spec.max_pixels:
        rule = f"gives {larger[0]} x {larger[1]}, and may give at most {MAX_SIDE} a side and {spec.max_pixels} in all"
        raise InvalidParameter("hires", f"{rule}: ask for a smaller scale, width or height")


def _check_similar(params: GenerationParams, task: Task) -> None:
    if task != "text-to-image" or params.controls or params.reference is not None or params.hires is not None:
        raise InvalidParameter("cache", "can be `similar` only for requests without images, ControlNets and `hires`")
    if params.exact or params.deep_cache > 1:
        raise InvalidParameter("cache", "can be `similar` only without `exact` and `deep_cache`")


def _check_task(params: GenerationParams, task: Task) -> None:
    if params.strength is not None and task == "text-to-image":
        raise InvalidParameter("strength", "is for image-to-image and inpaint only")
    if task != "inpaint":
        for name in GenerationParams.model_fields:
            if name in INPAINT_FIELDS and getattr(params, name) != GenerationParams.model_fields[name].default:
                raise InvalidParameter(name, "is for inpaint only")
    if params.hires is not None and task != "text-to-image":
        raise InvalidParameter("hires", "is for requests that start from no image only")
    if params.guess_mode and not params.controls:
        raise InvalidParameter("guess_mode", "is for requests with a ControlNet only")
