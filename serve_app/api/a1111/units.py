"""The units of A1111's ControlNet extension, as ControlNets and hints that we know."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import AliasChoices, Field, ValidationError, field_validator

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Fit
from deployments.engine.protocol.settings import MAX_CONTROLS, ControlSettings, ReferenceSettings
from serve_app.api.a1111 import ip_adapters
from serve_app.api.a1111.fields import MAX_UNITS, LenientFields, Scripts, validate_fields
from serve_app.api.parsing.base64_pictures import decode_picture
from serve_app.api.problems import Problem

SCRIPT: Final = "controlnet"
FIELD: Final = "alwayson_scripts"

WITHOUT_EFFECT: Final = frozenset(
    (
        # The annotators' own settings stand.
        *("processor_res", "threshold_a", "threshold_b", "pixel_perfect"),
        # Hints are cut to the masked part as the image is.
        "inpaint_crop_input_image",
        # Of networks that are not there.
        *("pulid_mode", "union_control_type"),
        # How it is computed, what is kept, and what the extension's own page is about.
        *("low_vram", "lowvram", "save_detected_map", "is_ui", "output_dir", "use_preview_as_input", "generated_image"),
    )
)
"""The extension's fields that change no picture here. All others that it knows are honoured, or refused by their names.
"""

BALANCED: Final = ("Balanced", "0")
CONTROL_FIRST: Final = ("ControlNet is more important", "2")

_RESIZE_MODES: Final[Mapping[str, Fit]] = {
    "just resize": "stretch",
    "0": "stretch",
    "crop and resize": "cover",
    "1": "cover",
    "resize and fill": "pad",
    "2": "pad",
}

# How the names of networks and of annotators begin, or what they contain, by the type that we know.
_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "canny": ("canny",),
    "depth": ("depth",),
    "pose": ("pose",),
    "segmentation": ("seg", "oneformer", "ofade20k", "ofcoco"),
    "softedge": ("softedge", "hed", "pidi"),
    "lines": ("mlsd",),
    "instruct": ("ip2p", "instruct"),
}


_WHOLE: Final = "is not supported by this server: a ControlNet acts on the whole image"


def _last_word(option: str | int) -> str:
    """Returns an option, which may be called as the extension's own code calls it: `HiResFixOption.BOTH`."""
    return str(option).rpartition(".")[2].casefold()


class UnitFields(LenientFields):
    """One unit. `module` makes the hint from a photo, or is `none`; `model` is the network.

    What a field asks for is made or refused by name, unless it is in `WITHOUT_EFFECT`.
    """

    enabled: bool = True
    image: str | dict[str, Any] = Field(default="", validation_alias=AliasChoices("image", "input_image"))
    mask: Any = None
    mask_image: Any = None
    effective_region_mask: Any = None
    module: str = Field(default="none", max_length=200)
    model: str = Field(default="None", max_length=200)
    weight: float = Field(default=1.0, ge=0.0, le=2.0)
    resize_mode: str | int = "Crop and Resize"
    guidance_start: float = Field(default=0.0, ge=0.0, le=1.0)
    guidance_end: float = Field(default=1.0, ge=0.0, le=1.0)
    control_mode: str | int = "Balanced"
    hr_option: str | int = "Both"
    input_mode: str | int = "simple"
    advanced_weighting: Any = None
    ipadapter_input: Any = None
    invert_image: Any = None
    loopback: Any = None
    batch_images: Any = None
    batch_image_files: Any = None
    batch_keyframe_idx: Any = None
    batch_modifiers: Any = None
    animatediff_batch: Any = None
    guess_mode: Any = None
    guessmode: Any = None

    @field_validator("mask", "mask_image", "effective_region_mask")
    @classmethod
    def _check_mask(cls, mask: Any) -> Any:
        if mask:
            raise ValueError(_WHOLE)
        return mask

    @field_validator("image")
    @classmethod
    def _check_image(cls, image: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(image, dict) and image.get("mask"):
            raise ValueError(f"has a mask, which {_WHOLE}")
        return image

    @field_validator(
        "advanced_weighting",
        "ipadapter_input",
        "invert_image",
        "loopback",
        "batch_images",
        "batch_image_files",
        "batch_keyframe_idx",
        "batch_modifiers",
        "animatediff_batch",
    )
    @classmethod
    def _refuse_what_is_not_there(cls, value: Any) -> Any:
        if value:
            raise ValueError("is not supported by this server; leave it out")
        return value

    @field_validator("guess_mode", "guessmode")
    @classmethod
    def _refuse_old_mode(cls, value: Any) -> Any:
        if value:
            raise ValueError(f"must be left out; control_mode {CONTROL_FIRST[0]} is what it was")
        return value

    @field_validator("hr_option")
    @classmethod
    def _check_passes(cls, option: str | int) -> str | int:
        if _last_word(option) not in ("both", "0"):
            raise ValueError("must be Both: a ControlNet acts in both passes")
        return option

    @field_validator("input_mode")
    @classmethod
    def _check_input_mode(cls, mode: str | int) -> str | int:
        if _last_word(mode) not in ("simple", "0"):
            raise ValueError("must be simple: a unit has one picture")
        return mode

    @field_validator("control_mode")
    @classmethod
    def _check_mode(cls, mode: str | int) -> str | int:
        if str(mode) not in (*BALANCED, *CONTROL_FIRST):
            raise ValueError(f"must be {BALANCED[0]} or {CONTROL_FIRST[0]}")
        return mode

    @field_validator("resize_mode")
    @classmethod
    def _check_resize_mode(cls, mode: str | int) -> str | int:
        if str(mode).casefold() not in _RESIZE_MODES:
            raise ValueError("must be Just Resize, Crop and Resize or Resize and Fill")
        return mode

    @property
    def fit(self) -> Fit:
        """How its picture becomes the request's size."""
        return _RESIZE_MODES[str(self.resize_mode).casefold()]

    @property
    def picture(self) -> str:
        """The picture in base64; "" for none. Some clients send it in an object, which has a place for a mask."""
        found = self.image.get("image", "") if isinstance(self.image, dict) else self.image
        return found if isinstance(found, str) else ""

    @property
    def acts_on_prompt_alone(self) -> bool:
        """Whether it acts on the prompted half only, as our `guess_mode` does."""
        return str(self.control_mode) in CONTROL_FIRST


@dataclass(frozen=True, slots=True)
class Units:
    """The units of a request: `controls` with their `hints`, and the `reference` with its images.

    None among the pictures is the request's own image.
    """

    controls: tuple[ControlSettings, ...] = ()
    hints: tuple[bytes | None, ...] = ()
    reference: ReferenceSettings | None = None
    references: tuple[bytes | None, ...] = ()
    guess_mode: bool = False
    fit: Fit | None = None


def read_units(scripts: Scripts, types: Sequence[str], adapters: Sequence[str] = ()) -> Units:
    """Returns the ControlNets in `alwayson_scripts`, which are to be of `types`, and its units of IP-Adapters.

    Raises InvalidParameter, and Problem 422 for bad fields.
    """
    enabled = [unit for unit in map(_read_unit, _find_arguments(scripts)) if unit.enabled]
    references = [unit for unit in enabled if ip_adapters.is_reference(unit, adapters)]
    if references and not adapters:
        raise InvalidParameter(FIELD, "names an IP-Adapter, and this model has none")
    units = _read_controls([unit for unit in enabled if unit not in references], types)
    if not references:
        return units
    reference = ip_adapters.reference_of(references, adapters, FIELD)
    return replace(units, reference=reference, references=tuple(map(_picture_of, references)))


def _read_controls(units: Sequence[UnitFields], types: Sequence[str]) -> Units:
    if len(units) > MAX_CONTROLS:
        raise InvalidParameter(FIELD, f"may have at most {MAX_CONTROLS} ControlNets")
    if len({unit.acts_on_prompt_alone for unit in units}) > 1:
        raise InvalidParameter(FIELD, "must have one control_mode for all ControlNets")
    if len({unit.fit for unit in units}) > 1:
        raise InvalidParameter(FIELD, "must have one resize_mode for all ControlNets")
    if not units:
        return Units()
    return Units(
        tuple(_control_of(unit, types) for unit in units),
        tuple(map(_picture_of, units)),
        guess_mode=units[0].acts_on_prompt_alone,
        fit=units[0].fit,
    )


def _picture_of(unit: UnitFields) -> bytes | None:
    return decode_picture(unit.picture, FIELD) if unit.picture else None


def type_of(name: str, types: Sequence[str]) -> str | None:
    """Returns the ControlNet of `types` that A1111's name of a network or an annotator stands for, or None."""
    asked = name.strip().casefold()
    exact = next((kind for kind in types if kind.casefold() == asked.partition(" [")[0]), None)

    def length(kind: str) -> int:
        # The longest word counts: "scribble_hed" makes scribbles.
        return max((len(word) for word in _WORDS.get(kind, (kind,)) if word in asked), default=0)

    return exact or max((kind for kind in types if length(kind)), key=length, default=None)


def list_modules(types: Sequence[str], adapters: Sequence[str] = ()) -> list[str]:
    """Returns the modules that a unit may name for those ControlNets and IP-Adapters."""
    return ["none", *types, *(ip_adapters.MODULES if adapters else ())]


def _find_arguments(scripts: Scripts) -> Iterator[Any]:
    """Yields the arguments of the ControlNet script. Other scripts are refused, unless they are switched off."""
    for name, script in scripts.items():
        arguments = script.get("args", []) if isinstance(script, dict) else script
        if not isinstance(arguments, list):
            raise InvalidParameter(FIELD, "must have lists of args")
        if name.casefold() == SCRIPT and len(arguments) > MAX_UNITS:
            raise InvalidParameter(FIELD, f"must have at most {MAX_UNITS} ControlNet units")
        if name.casefold() == SCRIPT:
            yield from arguments
        elif arguments and arguments[0] is not False:
            raise InvalidParameter(FIELD, "has a script that this server does not have; it has ControlNet")


def _read_unit(argument: Any) -> UnitFields:
    if not isinstance(argument, dict):
        raise InvalidParameter(FIELD, "must have an object for each ControlNet")
    try:
        return validate_fields(UnitFields, argument)
    except Problem as problem:
        raise problem.relocate(f"{FIELD}/ControlNet/args") from None


def _control_of(unit: UnitFields, types: Sequence[str]) -> ControlSettings:
    makes_hint = unit.module.strip().casefold() not in ("", "none")
    asked = unit.module if unit.model.strip().casefold() in ("", "none") else unit.model
    kind = type_of(asked, types)
    if kind is None:
        raise InvalidParameter(FIELD, f"names a ControlNet that this model does not have; it has: {', '.join(types)}")
    if makes_hint and type_of(unit.module, types) != kind:
        raise InvalidParameter(FIELD, "has a module that makes no hints for its model; send the hint, with module none")
    try:
        return ControlSettings(
            type=kind,
            scale=unit.weight,
            start=unit.guidance_start,
            end=unit.guidance_end,
            preprocess=makes_hint,
        )
    except ValidationError:
        raise InvalidParameter(FIELD, "must have a guidance_start below its guidance_end") from None
