"""Reads a request as OpenAI's clients send it: their fields and ours in one object, as parameters that we know."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from deployments.engine.protocol.fields import StrictFields, check_name
from deployments.engine.protocol.params import IMAGE_FIELDS, MAX_SIDE, MIN_SIDE, GenerationParams, OutputFormat
from deployments.engine.protocol.settings import SIZE_STEP
from deployments.engine.protocol.spec import ModelSpec
from serve_app.api.openai.errors import RENAMED, translate_fault
from serve_app.api.openai.model_names import ModelNames
from serve_app.api.parsing.validation import MAX_FAULTS, fault_of, problem_of_faults, validate_params
from serve_app.api.problems import Fault, Problem, pointer_to
from serve_app.generation.sizes import fit_to_model, nearest_side

MAX_IMAGES: Final = 10
MAX_PARTIAL_IMAGES: Final = 3

Quality = Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"]

STEPS: Final[Mapping[Quality, int]] = MappingProxyType(
    {"low": 15, "medium": 25, "standard": 25, "high": 50, "hd": 50, "xhigh": 75, "max": 100}
)
"""What each quality means in denoising steps; `auto` is the default of all other endpoints."""

_TODAYS_NAMES: Final[Mapping[Quality, Quality]] = MappingProxyType({"standard": "medium", "hd": "high"})

UNSUPPORTED: Final = ("complexity", "input_fidelity", "frame_count", "frame_duration_ms", "svg")
"""OpenAI's fields that no Stable Diffusion model could honour; null says nothing."""

CLIENT_SIZES: Final = frozenset({(1024, 1024), (1536, 1024), (1024, 1536), (1792, 1024), (1024, 1792)})
"""The sizes of OpenAI's models, which clients offer whatever a model can: each comes at the native area, where it is
beyond the model.
"""

# Clients send these empty for what their users have left out.
_MAY_BE_EMPTY: Final = frozenset({*UNSUPPORTED, "markup", "model", "size", "quality", "style", "background", "user"})

_SIZE: Final = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


class ImagesFields(StrictFields):
    """OpenAI's own fields. `style`, `moderation` and `user` are taken and change nothing.

    `output_compression` is the quality of a lossy file. `partial_images` are previews of each image, in a stream only.
    """

    model: str | None = Field(default=None, max_length=200)
    n: int = Field(default=1, ge=1, le=MAX_IMAGES)
    size: str = Field(default="auto", max_length=32)
    quality: Quality = "auto"
    output_format: OutputFormat = "png"
    output_compression: int | None = Field(default=None, ge=0, le=100)
    response_format: str = Field(default="b64_json", max_length=32)
    background: Literal["auto", "opaque"] = "auto"
    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["auto", "low"] = "auto"
    user: str | None = Field(default=None, max_length=512)
    safety_identifier: str | None = Field(default=None, max_length=512)
    stream: bool = False
    partial_images: int = Field(default=0, ge=0, le=MAX_PARTIAL_IMAGES)

    @field_validator("model", "user", "safety_identifier")
    @classmethod
    def _check_names(cls, name: str | None) -> str | None:
        return None if name is None else check_name(name)

    @field_validator("size")
    @classmethod
    def _check_size(cls, size: str) -> str:
        sides = _sides_of(size)
        if size != "auto" and not (sides and all(_is_side(side) for side in sides)):
            rule = f"must be auto or WIDTHxHEIGHT, both multiples of {SIZE_STEP} from {MIN_SIDE} to {MAX_SIDE}"
            nearest = "x".join(str(nearest_side(side)) for side in sides or ())
            raise ValueError(f"{rule}; nearest: {nearest}" if sides else rule)
        return size

    @field_validator("response_format")
    @classmethod
    def _check_response_format(cls, value: str) -> str:
        if value not in ("b64_json", "url"):
            raise ValueError("must be b64_json or url")
        return value

    @field_validator("output_compression")
    @classmethod
    def _check_compression(cls, value: int | None, info: ValidationInfo) -> int | None:
        # The format is not there if it is wrong itself.
        if value not in (None, 100) and info.data.get("output_format") == "png":
            raise ValueError("must be 100 for png, which loses nothing; ask for webp or jpeg")
        return value

    @property
    def sides(self) -> tuple[int, int] | None:
        """Width and height; None for the model's own."""
        return _sides_of(self.size)

    @property
    def steps(self) -> int | None:
        """The denoising steps that the quality stands for; None for the default."""
        return STEPS.get(self.quality)

    @property
    def quality_today(self) -> Quality:
        """The quality by the name that answers have for it."""
        return _TODAYS_NAMES.get(self.quality, self.quality)

    @property
    def caller(self) -> str | None:
        """The caller's own user, in the caller's own words."""
        return self.safety_identifier or self.user or None


OWN_FIELDS: Final = tuple(ImagesFields.model_fields)

_OURS: Final = tuple(name for name in GenerationParams.model_fields if name not in {*RENAMED, *OWN_FIELDS})


_EDITS_ONLY: Final = IMAGE_FIELDS | {"reference"}


def our_fields(*, edits: bool) -> tuple[str, ...]:
    """The parameters of ours that may stand beside OpenAI's fields."""
    return tuple(name for name in _OURS if edits or name not in _EDITS_ONLY)


@dataclass(frozen=True, slots=True)
class ImagesRequest:
    """A request as it was understood: `params` say what is made, `fields` how it is answered."""

    fields: ImagesFields
    params: GenerationParams


def read_images_request(
    body: Mapping[str, Any], models: ModelNames, *, edits: bool, keeps_images: bool = False
) -> ImagesRequest:
    """Reads the fields of a generation, or of an edit. Raises Problem 422, which lists the first faults of all.

    `keeps_images` says whether an answer may have addresses.
    """
    body = {name: value for name, value in body.items() if not _is_left_out(name, value)}
    faults = [*_refuse_names(body, edits=edits)]
    fields = _read_own_fields({name: body[name] for name in OWN_FIELDS if name in body})
    if isinstance(fields, Problem):
        faults += fields.faults
        fields = ImagesFields()
    faults += _refuse_urls(fields, keeps_images=keeps_images)
    given = {name: body[name] for name in our_fields(edits=edits) if name in body}
    params = validate_params(given | _translate(fields, given, models))
    if isinstance(params, Problem):
        faults += params.faults
    if faults or isinstance(params, Problem):
        raise problem_of_faults(tuple(translate_fault(fault) for fault in faults[:MAX_FAULTS]), len(faults))
    return ImagesRequest(fields, params)


def fit_size(asked: ImagesRequest, served: ModelSpec) -> ImagesRequest:
    """Returns the request with a size that clients offer by themselves in its shape at the native area, if the model
    that serves it cannot make it.
    """
    if asked.fields.sides not in CLIENT_SIZES:
        return asked
    width, height = fit_to_model(*asked.fields.sides, served)
    return replace(asked, params=asked.params.model_copy(update={"width": width, "height": height}))


def _translate(fields: ImagesFields, given: Mapping[str, Any], models: ModelNames) -> dict[str, Any]:
    """OpenAI's fields as parameters. Steps that are given go before a quality."""
    translated = {
        "model_name": models.resolve(fields.model),
        "num_images": fields.n,
        "output_format": fields.output_format,
        # 100, the one that a png may have, says nothing of it.
        "output_quality": None if fields.output_format == "png" else fields.output_compression,
    }
    if fields.sides:
        translated["width"], translated["height"] = fields.sides
    if fields.steps and given.get("num_inference_steps") is None:
        translated["num_inference_steps"] = fields.steps
    return translated


def _read_own_fields(body: Mapping[str, Any]) -> ImagesFields | Problem:
    try:
        return ImagesFields.model_validate(body)
    except ValidationError as error:
        faults = tuple(fault_of(detail, known=OWN_FIELDS) for detail in error.errors(include_url=False))
        problem = problem_of_faults(faults, len(faults))
    return problem


def _refuse_urls(fields: ImagesFields, *, keeps_images: bool) -> Iterator[Fault]:
    """Yields a fault for an address that there cannot be."""
    if fields.response_format == "url" and not keeps_images:
        rule = "must be b64_json: this server keeps no images that a URL could lead to"
        yield Fault(pointer_to("response_format"), "invalid_value", rule)
    elif fields.response_format == "url" and fields.stream:
        yield Fault(pointer_to("response_format"), "invalid_value", "must be b64_json in a stream")


def _refuse_names(body: Mapping[str, Any], *, edits: bool) -> Iterator[Fault]:
    """Yields a fault for every name that means nothing here."""
    known = (*OWN_FIELDS, *our_fields(edits=edits))
    for count, name in enumerate(name for name in body if name not in known):
        if name in UNSUPPORTED:
            yield Fault(pointer_to(name), "unsupported_parameter", "is not supported by this server; leave it out")
        elif name in RENAMED:
            yield Fault(pointer_to(name), "unknown_field", f"is not a field here; did you mean {RENAMED[name]}?")
        elif name in _EDITS_ONLY:
            yield Fault(pointer_to(name), "unknown_field", "is for /v1/images/edits only")
        else:
            # To look for the nearest name takes long, and no more faults than that are shown.
            yield fault_of({"type": "extra_forbidden", "loc": (name,)}, known=known, hints=count < MAX_FAULTS)


def _is_left_out(name: str, value: Any) -> bool:
    """Returns True for what says nothing: a null, or an empty text where there is always one."""
    if value is None:
        return name in {*OWN_FIELDS, *UNSUPPORTED, *_EDITS_ONLY, "markup"}
    return value == "" and name in _MAY_BE_EMPTY


def _sides_of(size: str) -> tuple[int, int] | None:
    found = _SIZE.fullmatch(size)
    return (int(found[1]), int(found[2])) if found else None


def _is_side(pixels: int) -> bool:
    return MIN_SIDE <= pixels <= MAX_SIDE and pixels % SIZE_STEP == 0
