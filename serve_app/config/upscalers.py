"""The `upscalers` section: the networks that enlarge pictures, by the names that callers use."""

from typing import Annotated

from pydantic import AfterValidator, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from deployments.engine.protocol.fields import check_name
from deployments.engine.protocol.params import BUILT_IN_UPSCALERS
from deployments.engine.protocol.spec import UpscalerSpec
from serve_app.config.strict import Strict

UpscalerLabel = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(check_name)]

_TAKEN = (*BUILT_IN_UPSCALERS, "none")


class UpscalerConfig(Strict):
    """A network of ESRGAN's or Real-ESRGAN's kind: a safetensors file, or one in a pinned hub repository."""

    name: UpscalerLabel
    source: str
    revision: str | None = None
    file: str = ""
    licence: str = ""

    @model_validator(mode="after")
    def _name_is_free(self) -> "UpscalerConfig":
        if self.name.casefold() in _TAKEN:
            text = f"{self.name!r} is built in; names that are taken are {', '.join(_TAKEN)}"
            raise PydanticCustomError("taken", "{text}", {"text": text})
        return self

    def spec(self) -> UpscalerSpec:
        """Returns the specification that engines take."""
        return UpscalerSpec(self.name, self.source, self.revision, self.file, self.licence)
