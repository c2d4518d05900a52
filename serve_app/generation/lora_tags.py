"""The tags in A1111's prompts that switch on LoRAs: `<lora:name:weight>`."""

import re
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from deployments.engine.protocol.settings import MAX_LORAS, LoraSettings

_TAG: Final = re.compile(r"<(lora|lyco|hypernet)\s*:([^<>]*)>", re.IGNORECASE)
_BEGINNING: Final = re.compile(r"<(lora|lyco|hypernet)\s*:", re.IGNORECASE)
_WEIGHT: Final = re.compile(r"[+-]?(\d{1,9}(\.\d{0,20})?|\.\d{1,9})([eE][+-]?\d{1,3})?", re.ASCII)
# A weight may have its name: of the text encoder's part, and of the UNet's.
_NAMED: Final = {"te": 0, "unet": 1}


@dataclass(frozen=True, slots=True)
class TaggedPrompt:
    """A prompt without its tags, and the LoRAs that they named."""

    prompt: str
    loras: tuple[LoraSettings, ...]


def has_tags(text: str) -> bool:
    """Returns True if a tag begins anywhere in `text`."""
    return _BEGINNING.search(text) is not None


def split_tags(text: str) -> TaggedPrompt:
    """Takes the tags out of a prompt, as A1111 does. Raises ValueError, which states the rule that a tag breaks."""
    loras = [_read_tag(match[1].lower(), match[2]) for match in _TAG.finditer(text)]
    rest = _TAG.sub("", text)
    if has_tags(rest):
        raise ValueError("has a tag that does not end: it must be <lora:NAME:WEIGHT>")
    if len(loras) > MAX_LORAS:
        raise ValueError(f"must name at most {MAX_LORAS} LoRAs")
    if len({lora.name for lora in loras}) < len(loras):
        raise ValueError("must not name a LoRA twice")
    return TaggedPrompt(rest, tuple(loras))


def join_tags(prompt: str, loras: tuple[LoraSettings, ...]) -> str:
    """Returns the prompt with a tag for each LoRA behind it."""
    return " ".join(part for part in (prompt, *(f"<lora:{each.name}:{_number(each.scale)}>" for each in loras)) if part)


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def _read_tag(kind: str, arguments: str) -> LoraSettings:
    if kind == "hypernet":
        raise ValueError("names a hypernetwork, and this server has none; leave it out")
    name, *given = (part.strip() for part in arguments.split(":"))
    scales = [1.0, 1.0]
    for index, argument in enumerate(given):
        label, named, value = argument.rpartition("=")
        if (label if named else "te") not in _NAMED or index > 1 or not _WEIGHT.fullmatch(value.strip()):
            raise ValueError("has a tag with more than a name and a weight: it must be <lora:NAME:WEIGHT>")
        if named:
            scales[_NAMED[label]] = float(value)
        elif index == 0:
            scales = [float(value)] * 2
        else:
            scales[1] = float(value)
    if scales[0] != scales[1]:
        raise ValueError("gives a LoRA two weights; here one holds for the text encoder and the UNet")
    try:
        return LoraSettings(name=name, scale=scales[0])
    except ValidationError:
        rule = "a name on this server, and a weight from -4 to 4"
        raise ValueError(f"has a tag that is not <lora:NAME:WEIGHT> with {rule}") from None
