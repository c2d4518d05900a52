"""LoRAs as a request names them, and as an engine gets them: files, and how strongly each acts. No torch."""

import re
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field, field_validator

from deployments.engine.protocol.fields import StrictFields, check_name

MAX_LORAS: Final = 8

# What `<lora:name:weight>` and paths give a meaning to.
_NAME: Final = re.compile(r"[^.<>:/\\\s][^<>:/\\]{0,99}")


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


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A file of the registry, under the `name` that callers use.

    `source` is the path of a safetensors file, or a repository on the hub at the commit `revision`, in which it is
    `file`. `digest` is the SHA-256 of a local file in hexadecimal: a file that changes becomes another LoRA. It is ""
    on the hub, where the commit says as much.
    """

    name: str
    source: str
    revision: str | None = None
    file: str = ""
    digest: str = ""

    @property
    def identity(self) -> tuple[str, ...]:
        """What its weights are known by, whatever its name and place: the digest, or where it is on the hub."""
        return (self.digest,) if self.digest else (self.source, self.revision or "", self.file)


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA in a request, which acts `scale` times as strongly as it was trained to."""

    file: LoraFile
    scale: float
