"""What a caller may ask for, validated, without torch.

`GenerationParams` is what was asked: a field left out is `None` where its default depends on the model.
`effective_params` fills those in from the model's `ModelSpec`; everything behind it works on complete parameters.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from deployments.engine.errors import InvalidParameter
from deployments.engine.sampler_names import resolve_sampler
from deployments.engine.spec import ModelSpec

MAX_SEED = 2**63 - 1
SIZE_STEP = 8

OutputFormat = Literal["png", "webp", "jpeg"]
Prompt = Annotated[str, StringConstraints(max_length=8_000)]
Side = Annotated[int, Field(ge=64, le=2048, multiple_of=SIZE_STEP)]


class GenerationParams(BaseModel):
    """The parameters of one text-to-image request. Frozen; unknown fields and wrong types are refused.

    Sizes are pixels. `seed` is that of the first image, image i uses `seed + i`; `None` or -1 draws one.
    `guidance_scale` <= 1 switches classifier-free guidance off (Ho and Salimans, 2022).
    `style_preset` is the name of a known style, or free text that is appended to the prompt.
    `clip_skip` counts the text encoder's last layers that are left out for the prompt, as in diffusers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

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
    output_format: OutputFormat = "png"

    @field_validator("prompt")
    @classmethod
    def _prompt_says_something(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("must not be empty")
        return prompt

    @field_validator("prompt", "negative_prompt", "style_preset")
    @classmethod
    def _text_is_unicode(cls, text: str | None) -> str | None:
        if text is not None and any("\ud800" <= char <= "\udfff" for char in text):
            raise ValueError("must be valid Unicode, without lone surrogates")
        return text

    @field_validator("sampler")
    @classmethod
    def _sampler_is_known(cls, sampler: str | None) -> str | None:
        if sampler is None:
            return None
        try:
            return resolve_sampler(sampler)
        except InvalidParameter as error:
            raise ValueError(error.message) from None


def effective_params(params: GenerationParams, spec: ModelSpec) -> GenerationParams:
    """`params` with every default of the model filled in and checked against the model's limits.

    Raises InvalidParameter when the size is more than the model may be asked for. The seed is left as it is:
    drawing one is the service's decision, because it must happen once, before caching and replays.
    """
    width = params.width or spec.native_size
    height = params.height or spec.native_size
    if width * height > spec.max_pixels:
        raise InvalidParameter(
            "width", f"width x height must be at most {spec.max_pixels} pixels for this model, got {width * height}"
        )
    defaults: dict[str, Any] = {"width": width, "height": height, "model_name": spec.name}
    if params.sampler is None:
        defaults["sampler"] = spec.default_sampler
    return params.model_copy(update=defaults)
