"""The ground that every part of the configuration stands on."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from serve_app.config.errors import suggest


class Strict(BaseModel):
    """Frozen; an unknown key is refused, with the nearest right one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        """Before pydantic's own refusal, to name the key that was probably meant."""
        for key in data if isinstance(data, dict) else ():
            if key not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown_key", "{text}", {"text": f"unknown key {key!r}{suggest(key, cls.model_fields)}"}
                )
        return data
