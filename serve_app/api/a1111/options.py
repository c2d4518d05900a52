"""The options of A1111's web UI that mean something here. Each caller has its own."""

from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator

from serve_app.api.a1111.fields import LenientFields, check_vae
from serve_app.store.caller_state import CallerState

TTL_S: Final = 30 * 86_400.0
"""How long a caller's options are kept after they were set."""

_NAME: Final = "options"

_FORMATS: Final = {"png": "png", "webp": "webp", "jpg": "jpeg", "jpeg": "jpeg"}


class Options(LenientFields):
    """A caller's options. `sd_model_checkpoint` is the model where a request names none; "" is the default one.

    `CLIP_stop_at_last_layers` counts from 1, which leaves out none. `live_previews_enable`: whether progress shows the
    image as it is.
    """

    sd_model_checkpoint: str = Field(default="", max_length=300)
    clip_layers: int = Field(default=1, ge=1, le=13, alias="CLIP_stop_at_last_layers")
    samples_format: str = Field(default="png", max_length=16)
    live_previews_enable: bool = True
    sd_vae: str = Field(default="Automatic", max_length=300)

    @field_validator("samples_format")
    @classmethod
    def _check_format(cls, name: str) -> str:
        if name.lower() not in _FORMATS:
            raise ValueError(f"must be one of {', '.join(_FORMATS)}")
        return name.lower()

    @field_validator("sd_vae")
    @classmethod
    def _check_vae(cls, name: str) -> str:
        return check_vae(name)

    @property
    def output_format(self) -> Literal["png", "webp", "jpeg"]:
        """The format of the images, by the name that we have for it."""
        return _FORMATS[self.samples_format]  # type: ignore[return-value]

    def with_changes(self, changes: dict[str, Any]) -> Self:
        """Returns these options with those in `changes`, of which all others are left out. Raises ValidationError."""
        return type(self).model_validate(self.model_dump(by_alias=True) | changes)


class CallerOptions:
    """The options of all callers."""

    def __init__(self, state: CallerState) -> None:
        self._state = state

    async def read(self, caller: str) -> Options:
        """Returns the caller's options."""
        entry = (await self._state.read(caller)).get(_NAME)
        try:
            return Options() if entry is None else Options.model_validate(entry.value)
        except ValidationError:
            # Another version has kept what this one does not take.
            return Options()

    async def write(self, caller: str, options: Options) -> None:
        """Keeps the caller's options."""
        await self._state.put(caller, _NAME, options.model_dump(mode="json", by_alias=True))
