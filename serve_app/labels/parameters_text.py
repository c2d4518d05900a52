"""The text in a picture that says how it was made, in the grammar of A1111's web UI, which other tools read as well.

    a red cup on a blue background
    Negative prompt: text, frame
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 7, Size: 512x512, Model: ...

The fields are the last line. Readers take whatever is above it for the prompts, so nothing in a prompt can change them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from deployments.engine.protocol.params import BUILT_IN_UPSCALERS, GenerationParams
from deployments.engine.protocol.sampler_names import CHECKPOINT, SAMPLERS
from deployments.engine.protocol.settings import ControlSettings, HiresSettings, ReferenceSettings
from serve_app.generation.lora_tags import join_tags
from serve_app.labels.file_metadata import clean_text
from serve_app.observability.versions import darkroom_version

Value = str | int | float

PROMPT: Final = "Prompt"
NEGATIVE: Final = "Negative prompt"

IP_ADAPTER_MODULE: Final = "ip-adapter-auto"
"""What A1111's ControlNet extension calls its preprocessor that fits any IP-Adapter."""

MAX_TEXT: Final = 64 * 1024
"""Characters of a text that is read: our own have less than a third of them."""

_MAX_FIELDS: Final = 200
# A text is a set of fields, and not a prompt's last line, if it has at least as many.
_FEWEST_FIELDS: Final = 3

_KARRAS: Final = " Karras"
_LABEL: Final = re.compile(r"\s*(\w[\w \-/]{0,63}):\s*")
_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})")
_MARK: Final = f"{NEGATIVE}:"
_NO_FIELDS: Final[Mapping[str, Value]] = MappingProxyType({})


def parameters_text(
    params: GenerationParams,
    *,
    seed: int,
    prompts: bool = True,
    preprocessed: bool = False,
    further: Mapping[str, Value] = _NO_FIELDS,
) -> str:
    """Returns the text for an image of `seed`, one of those of complete `params`, whose prompt has its style applied.

    LoRAs are tags behind the prompt. Without `prompts` it is the line of fields alone. `preprocessed` says that hints
    were made from photos. `further` are fields that a surface has besides, under A1111's own names.
    """
    above = _prompt_lines(params) if prompts else []
    fields = dict(_fields_of(params, seed, preprocessed, further))
    if prompts:
        # Read back, the lines must give the prompts; if not, the fields say what they are, and come first.
        read = parse_parameters("\n".join([*above, _join(fields)]))
        for name, prompt in ((PROMPT, join_tags(params.prompt, params.loras)), (NEGATIVE, params.negative_prompt)):
            if read[name] != _strip_lines(prompt):
                fields[name] = prompt
    return "\n".join([*above, _join(fields)])


def parse_parameters(text: str) -> dict[str, str]:
    """Returns the fields of a text as A1111 reads it, with `Prompt` and `Negative prompt`; sizes as `Size-1`, `Size-2`.

    Text of other programs is read as well: what makes no sense in it is left out.
    """
    *lines, last = text[:MAX_TEXT].strip().split("\n")
    fields = _read_fields(last)
    if len(fields) < _FEWEST_FIELDS:
        lines, fields = [*lines, last], {}
    prompts: dict[str, list[str]] = {PROMPT: [], NEGATIVE: []}
    current = prompts[PROMPT]
    for line in (line.strip() for line in lines):
        if line.startswith(_MARK):
            current = prompts[NEGATIVE]
            line = line.removeprefix(_MARK).strip()
        current.append(line)
    return {**{name: "\n".join(each).strip() for name, each in prompts.items()}, **fields}


def _prompt_lines(params: GenerationParams) -> list[str]:
    """The lines above the fields. ComfyUI's reader looks for the second, so it is there for an empty prompt, too."""
    # A prompt with the mark in it would be cut in two by readers that look for it anywhere.
    tagged = join_tags(params.prompt, params.loras)
    prompt, negative = (each.replace(_MARK, f"{NEGATIVE} :") for each in (tagged, params.negative_prompt))
    return [prompt, f"{_MARK} {negative}"]


def _fields_of(
    params: GenerationParams, seed: int, preprocessed: bool, further: Mapping[str, Value]
) -> Iterator[tuple[str, Value]]:
    yield "Steps", params.num_inference_steps
    yield from _sampler_of(params.sampler or CHECKPOINT)
    yield "CFG scale", params.guidance_scale
    yield "Seed", seed
    yield "Size", f"{params.width}x{params.height}"
    if params.model_name is not None:
        yield "Model", params.model_name
    if params.strength is not None:
        yield "Denoising strength", params.strength
    if params.clip_skip:
        # A1111 counts the layer that is taken, from the last one.
        yield "Clip skip", params.clip_skip + 1
    if params.padding_mask_crop is not None:
        yield "Inpaint area", "Only masked"
        yield "Masked area padding", params.padding_mask_crop
    if params.mask_feather:
        yield "Mask feather", params.mask_feather
    if params.guidance_interval is not None:
        yield "Guidance interval", "-".join(map(_number, params.guidance_interval))
    if params.deep_cache > 1:
        yield "Deep cache", params.deep_cache
    if params.hires is not None:
        yield from _hires_fields(params.hires)
    for index, control in enumerate(params.controls):
        yield f"ControlNet {index}", _unit_of(control, params.guess_mode, preprocessed)
    if params.reference is not None:
        yield from _reference_fields(params.reference, unit=len(params.controls))
    yield from further.items()
    yield "Version", f"Darkroom {darkroom_version()}"


def _hires_fields(hires: HiresSettings) -> Iterator[tuple[str, Value]]:
    yield "Denoising strength", hires.strength
    yield "Hires upscale", hires.scale
    if hires.steps is not None:
        yield "Hires steps", hires.steps
    yield "Hires upscaler", _upscaler_label(hires.upscaler)


def _upscaler_label(name: str) -> str:
    """A1111 writes its own with a capital; a network has the name that its configuration gives it."""
    return name.capitalize() if name in BUILT_IN_UPSCALERS else name


def _sampler_of(name: str) -> Iterator[tuple[str, str]]:
    """A1111 names the sampler and the spacing of its noise levels apart."""
    if name == CHECKPOINT:
        yield "Sampler", CHECKPOINT.capitalize()
        return
    label = SAMPLERS[name].label
    yield "Sampler", label.removesuffix(_KARRAS)
    # Where it is left out, A1111 means what it finds best for the sampler.
    yield "Schedule type", _KARRAS.strip() if label.endswith(_KARRAS) else "Uniform"


def _unit_of(control: ControlSettings, guess_mode: bool, preprocessed: bool) -> str:
    """A ControlNet in the words of A1111's extension."""
    fields = {
        "Module": control.type if preprocessed else "none",
        "Model": control.type,
        "Weight": _number(control.scale),
        "Guidance Start": _number(control.start),
        "Guidance End": _number(control.end),
        "Control Mode": "ControlNet is more important" if guess_mode else "Balanced",
    }
    return ", ".join(f"{name}: {value}" for name, value in fields.items())


def _reference_fields(reference: ReferenceSettings, unit: int) -> Iterator[tuple[str, Value]]:
    """An IP-Adapter is a ControlNet to A1111's extension, too. What it has no words for are fields of our own."""
    fields = {
        "Module": IP_ADAPTER_MODULE,
        "Model": reference.adapter or "None",
        "Weight": _number(reference.scale),
        "Guidance Start": _number(reference.start),
        "Guidance End": _number(reference.end),
        "Control Mode": "Balanced",
    }
    yield f"ControlNet {unit}", ", ".join(f"{name}: {value}" for name, value in fields.items())
    if reference.weights:
        yield "Reference weights", "-".join(map(_number, reference.weights))


def _join(fields: Mapping[str, Value]) -> str:
    return ", ".join(f"{name}: {_quote(value)}" for name, value in fields.items())


def _quote(value: Value) -> str:
    """Quotes what would end a field early. Escaped, it also passes readers that know no quotes and split at commas."""
    if not isinstance(value, str):
        return _number(value)
    if value and not re.search(r'[,:\n"\\]', value) and value == value.strip():
        return value
    return json.dumps(value, ensure_ascii=False).replace(",", "\\u002c").replace(":", "\\u003a")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(value)


def _strip_lines(prompt: str) -> str:
    """A prompt as lines can hold it: spaces at their ends are lost, and mean nothing."""
    return "\n".join(line.strip() for line in prompt.split("\n")).strip()


def _read_fields(line: str) -> dict[str, str]:
    """Reads a line of fields: a name, a colon and a value, which is quoted where it has a comma."""
    found: dict[str, str] = {}
    at = 0
    for _ in range(_MAX_FIELDS):
        if at >= len(line):
            break
        label = _LABEL.match(line, at)
        if label is None:
            at = _after_comma(line, at)
            continue
        value, at = _read_value(line, label.end())
        size = _SIZE.fullmatch(value)
        if size:
            found |= {f"{label[1]}-1": size[1], f"{label[1]}-2": size[2]}
        else:
            found[label[1]] = value
    return found


def _read_value(line: str, at: int) -> tuple[str, int]:
    """Returns the value that begins there, and where the next field does."""
    if line.startswith('"', at):
        try:
            quoted: Any
            quoted, end = _JSON.raw_decode(line, at)
        except ValueError:
            pass
        else:
            if line[end : end + 1] in ("", ","):
                # Escapes stand for any character, also for those that the text itself may not have.
                return clean_text(quoted), end + 1
    end = _after_comma(line, at)
    return line[at:end].removesuffix(",").rstrip(), end


_JSON: Final = json.JSONDecoder()


def _after_comma(line: str, at: int) -> int:
    comma = line.find(",", at)
    return len(line) if comma < 0 else comma + 1
