"""The fields of a generation as A1111's clients send them: theirs are many, and most of them say nothing."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deployments.engine.protocol.fields import check_lines
from deployments.engine.protocol.params import Prompt
from serve_app.api.a1111.prompt_forms import check_forms
from serve_app.api.parsing.validation import problem_of_errors
from serve_app.generation.lora_tags import has_tags, split_tags
from serve_app.generation.styles import STYLES

MAX_IMAGES: Final = 16
MAX_UNITS: Final = 10
MAX_SCRIPTS: Final = 64

LATENT: Final = "Latent"
HR_UPSCALERS: Final[Mapping[str, str]] = MappingProxyType({LATENT: "latent", "Lanczos": "lanczos", "None": "lanczos"})
"""What enlarges an image between its two passes, besides networks. A1111 interpolates by Lanczos where it is told none.
"""

_SAME_IN_BOTH: Final = {
    "hr_checkpoint_name": "",
    "hr_sampler_name": "sampler",
    "hr_scheduler": "scheduler",
    "hr_prompt": "prompt",
    "hr_negative_prompt": "negative_prompt",
}

WITHOUT_EFFECT: Final = frozenset(
    (
        # As there, where the server's own options go before them.
        *("s_tmin", "s_tmax", "s_noise"),
        "eta",
        # Of what is refused, or is not there: variations of the noise, a refiner, scripts, instruct-pix2pix.
        *("subseed", "refiner_switch_at", "script_args", "image_cfg_scale"),
        # What happens to files on the server, and how a request is called there.
        *("save_images", "do_not_save_samples", "do_not_save_grid", "include_init_images", "force_task_id", "comments"),
    )
)
"""A1111's fields that change no picture here. All others that it knows are honoured, or refused by their names."""

Scripts = dict[str, Any]


class LenientFields(BaseModel):
    """A model as A1111 reads bodies: unknown fields and nulls say nothing, and "7" is a number."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


Lenient = TypeVar("Lenient", bound=LenientFields)


def validate_fields(kind: type[Lenient], body: Any) -> Lenient:
    """Returns the fields in `body`. Raises Problem 422, which lists the first faults."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        problem = problem_of_errors(error, known=tuple(kind.model_fields))
    raise problem


class OverrideSettings(LenientFields):
    """Options for one request. `CLIP_stop_at_last_layers` counts from 1, which leaves out none."""

    sd_model_checkpoint: str = Field(default="", max_length=300)
    clip_layers: int = Field(default=0, ge=0, le=13, alias="CLIP_stop_at_last_layers")
    sd_vae: str = Field(default="Automatic", max_length=300)

    @field_validator("sd_vae")
    @classmethod
    def _check_vae(cls, name: str) -> str:
        return check_vae(name)


def check_vae(name: str) -> str:
    """Returns the name that means the model's own VAE. Raises ValueError for another one."""
    if name.lower() not in ("", "none", "automatic"):
        raise ValueError("must be Automatic: a model is served with the VAE that its configuration names")
    return "Automatic"


class GenerationFields(LenientFields):
    """What text-to-image and image-to-image have in common.

    What a field asks for is made or refused by name, unless it is in `WITHOUT_EFFECT`.
    """

    prompt: Prompt = ""
    negative_prompt: Prompt = ""
    styles: tuple[str, ...] = Field(default=(), max_length=16)
    seed: int = -1
    subseed_strength: float = 0.0
    seed_resize_from_w: int = 0
    seed_resize_from_h: int = 0
    sampler_name: str = Field(default="", max_length=64)
    sampler_index: str = Field(default="", max_length=64)
    scheduler: str = Field(default="", max_length=64)
    batch_size: int = Field(default=1, ge=1, le=MAX_IMAGES)
    n_iter: int = Field(default=1, ge=1, le=MAX_IMAGES)
    steps: int = Field(default=50, ge=1, le=150)
    cfg_scale: float = Field(default=7.0, ge=0.0, le=50.0)
    width: int = Field(default=512, ge=64, le=16_384)
    height: int = Field(default=512, ge=64, le=16_384)
    restore_faces: bool = False
    tiling: bool = False
    s_churn: float = 0.0
    s_min_uncond: float = 0.0
    refiner_checkpoint: str = ""
    script_name: str = ""
    disable_extra_networks: bool = False
    infotext: str = ""
    firstpass_image: Any = None
    alwayson_scripts: Scripts = Field(default_factory=dict, max_length=MAX_SCRIPTS)
    override_settings: OverrideSettings = OverrideSettings()
    override_settings_restore_afterwards: bool = True
    send_images: bool = True

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, text: str) -> str:
        check_forms(split_tags(text).prompt, combines=True)
        return check_lines(text)

    @field_validator("negative_prompt")
    @classmethod
    def _check_negative_prompt(cls, text: str) -> str:
        if has_tags(text):
            raise ValueError("names a LoRA or a hypernetwork, which have an effect in the prompt only")
        # There, too, AND is a word in it like any other.
        return check_lines(check_forms(text, combines=False))

    @field_validator("styles")
    @classmethod
    def _check_styles(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not all(name.casefold() in STYLES for name in names):
            raise ValueError(f"must be of {', '.join(STYLES)}")
        return names

    @field_validator("seed")
    @classmethod
    def _check_seed(cls, seed: int) -> int:
        if not -1 <= seed < 2**62:
            raise ValueError("must be -1, for one that is drawn, or a number from 0 on with at most 62 bits")
        return seed

    @field_validator(
        "restore_faces",
        "tiling",
        "refiner_checkpoint",
        "script_name",
        "disable_extra_networks",
        "infotext",
        "firstpass_image",
    )
    @classmethod
    def _refuse_what_is_not_there(cls, value: Any) -> Any:
        if value and value != "None":
            raise ValueError("is not supported by this server; leave it out")
        return value

    @field_validator("subseed_strength", "seed_resize_from_w", "seed_resize_from_h", "s_churn")
    @classmethod
    def _refuse_variations(cls, value: float) -> float:
        if value > 0:
            raise ValueError("must be 0: this server has no such variations of the noise")
        return value

    @field_validator("s_min_uncond")
    @classmethod
    def _refuse_half_guidance(cls, value: float) -> float:
        if value > 0:
            raise ValueError("must be 0: every step has its negative prompt")
        return value

    @model_validator(mode="after")
    def _check_count(self) -> Self:
        if self.num_images > MAX_IMAGES:
            raise ValueError(f"n_iter x batch_size must be at most {MAX_IMAGES}")
        return self

    @property
    def num_images(self) -> int:
        """The images that are made at once; batches and their sizes make no difference here."""
        return self.batch_size * self.n_iter

    @property
    def sampler(self) -> str:
        """The sampler's name, under whichever of its two fields; "" for the model's own."""
        return self.sampler_name or self.sampler_index

    def echo(self) -> dict[str, Any]:
        """The fields as they were understood, without pictures, as A1111 repeats them."""
        return self.model_dump(mode="json", by_alias=True, exclude={"init_images", "mask", "alwayson_scripts"})


class TextToImageFields(GenerationFields):
    """The fields of `/sdapi/v1/txt2img`. With `enable_hr` the result is enlarged and denoised a second time."""

    enable_hr: bool = False
    denoising_strength: float = Field(default=0.75, ge=0.0, le=1.0)
    hr_scale: float = Field(default=2.0, ge=1.0, le=4.0)
    hr_upscaler: str = Field(default=LATENT, max_length=64)
    hr_second_pass_steps: int = Field(default=0, ge=0, le=150)
    hr_resize_x: int = Field(default=0, ge=0, le=16_384)
    hr_resize_y: int = Field(default=0, ge=0, le=16_384)
    hr_checkpoint_name: str = ""
    hr_sampler_name: str = ""
    hr_scheduler: str = ""
    hr_prompt: str = ""
    hr_negative_prompt: str = ""
    firstphase_width: int = 0
    firstphase_height: int = 0

    @field_validator("firstphase_width", "firstphase_height")
    @classmethod
    def _refuse_first_size(cls, pixels: int) -> int:
        if pixels:
            raise ValueError(
                "must be 0: the first pass has width and height; hr_resize_x and hr_resize_y are the second's"
            )
        return pixels

    @model_validator(mode="after")
    def _check_second_pass(self) -> Self:
        if not self.enable_hr:
            return self
        if self.denoising_strength == 0:
            raise ValueError("denoising_strength must be more than 0 with enable_hr")
        for name, like in _SAME_IN_BOTH.items():
            asked = getattr(self, name)
            if asked and not asked.lower().startswith("use same") and asked != getattr(self, like, ""):
                raise ValueError(f"{name} must be left out: both passes are made alike")
        return self


class ImageToImageFields(GenerationFields):
    """The fields of `/sdapi/v1/img2img`. `init_images` and `mask` are base64, also as data URLs.

    `inpaint_full_res` makes only the masked part, with `inpaint_full_res_padding` pixels around it. `mask_blur` goes
    before `mask_blur_x` and `mask_blur_y`, which must be the same.
    """

    init_images: tuple[str, ...] = Field(min_length=1, max_length=1)
    mask: str = ""
    denoising_strength: float = Field(default=0.75, gt=0.0, le=1.0)
    resize_mode: int = Field(default=0, ge=0, le=3)
    mask_blur: int | None = Field(default=None, ge=0, le=128)
    mask_blur_x: int = Field(default=4, ge=0, le=128)
    mask_blur_y: int = Field(default=4, ge=0, le=128)
    mask_round: bool = True
    latent_mask: Any = None
    initial_noise_multiplier: float = 1.0
    inpainting_fill: int = Field(default=0, ge=0, le=3)
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = Field(default=0, ge=0, le=1024)
    inpainting_mask_invert: bool = False

    @field_validator("latent_mask")
    @classmethod
    def _refuse_latent_mask(cls, mask: Any) -> Any:
        if mask:
            raise ValueError("is not supported by this server; leave it out, and send a mask")
        return mask

    @field_validator("mask_round")
    @classmethod
    def _check_rounding(cls, is_round: bool) -> bool:
        if not is_round:
            raise ValueError("must be true: a pixel is repainted or kept; mask_blur softens the edge")
        return is_round

    @field_validator("initial_noise_multiplier")
    @classmethod
    def _check_noise(cls, factor: float) -> float:
        if factor != 1:
            raise ValueError("must be 1: denoising_strength says how much noise there is")
        return factor

    @model_validator(mode="after")
    def _check_blur(self) -> Self:
        if self.mask_blur is None and self.mask_blur_x != self.mask_blur_y:
            raise ValueError("mask_blur_y must be the same as mask_blur_x: edges are softened alike in both directions")
        return self

    @property
    def blur(self) -> int:
        """How far the mask's edge is softened: the standard deviation in pixels, as A1111 has it."""
        return self.mask_blur_x if self.mask_blur is None else self.mask_blur
