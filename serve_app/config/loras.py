"""The `loras` section: LoRAs by name, and a folder whose files are LoRAs of their names."""

import re
from pathlib import Path
from typing import Final

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from deployments.engine.protocol.settings import check_lora_name
from deployments.loras.catalogue import SUFFIX, LoraCatalogue, LoraSpec
from serve_app.config.strict import Strict

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class LoraConfig(Strict):
    """A LoRA by its `name`: a safetensors file, or a repository on the hub at a `revision`, and the `file` in it.

    `models` are the names of the models that it is for; without any, it is for all that its file fits.
    """

    name: str
    source: str = Field(min_length=1)
    revision: str | None = None
    file: str = ""
    models: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_lora_name(name)

    @model_validator(mode="after")
    def _check_source(self) -> "LoraConfig":
        is_path = self.source.startswith((".", "/")) or self.source.endswith(SUFFIX)
        if not (self.file or self.source).endswith(SUFFIX):
            raise PydanticCustomError("not_safetensors", "LoRAs are read from safetensors files only")
        if is_path and (self.file or self.revision):
            raise PydanticCustomError("no_repository", "`file` and `revision` are for repositories on the hub")
        if not is_path and not _COMMIT.fullmatch(self.revision or ""):
            raise PydanticCustomError("unpinned", "a LoRA on the hub needs a `revision`: a commit of 40 digits")
        return self

    def spec(self) -> LoraSpec:
        """Returns the row of the registry."""
        return LoraSpec(self.name, self.source, self.revision, self.file, self.models)


class LorasConfig(Strict):
    """`named` are LoRAs with names of their own. Every safetensors file in `folder` is a LoRA of the file's name, as
    soon as it is there.
    """

    folder: str | None = None
    named: tuple[LoraConfig, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> "LorasConfig":
        names = [row.name for row in self.named]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise PydanticCustomError("duplicate", "{text}", {"text": f"the name {doubled[0]!r} is taken"})
        return self

    def catalogue(self) -> LoraCatalogue:
        """Returns what finds them."""
        return LoraCatalogue([row.spec() for row in self.named], None if self.folder is None else Path(self.folder))
