"""The base model of every part of the configuration."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from serve_app.config.errors import suggest


class Strict(BaseModel):
    """Frozen; refuses an unknown key, and suggests the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        """Runs before pydantic's own refusal, to suggest the key that was probably meant."""
        for key in data if isinstance(data, dict) else ():
            if key not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown_key", "{text}", {"text": f"unknown key {key!r}{suggest(key, cls.model_fields)}"}
                )
        return data
