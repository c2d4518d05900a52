"""The section of the configuration that says what pictures' files tell of themselves (docs/labels.md)."""

from typing import Final, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from deployments.engine.protocol.params import Metadata
from deployments.watermark.methods import OUR_METHOD
from serve_app.config.secret import Secret
from serve_app.config.strict import Strict

DEFAULT_PAYLOAD: Final = "44524b4d"
"""The same for every Darkroom: it says which software marked a picture, and not whose server."""


class WatermarkConfig(Strict):
    """`payload` is four bytes, in hexadecimal digits, that tell your pictures from others', unless it is the default.

    `method` is the class that marks pictures, on replicas, and finds marks, in the ingress: `package.module:Class`.
    """

    enabled: bool = True
    payload: str = Field(default=DEFAULT_PAYLOAD, pattern=r"^[0-9a-f]{8}$")
    method: str = OUR_METHOD


class SigningConfig(Strict):
    """C2PA manifests. `certificate` is the chain in PEM, the signer's own first; `private_key` belongs to it.

    Without them there is a development certificate, which says in its name that nobody should trust it: derived from
    `redis.key`, and so the same in every ingress, or drawn at each start where there is no Redis.
    """

    enabled: bool = True
    certificate: Secret | None = None
    private_key: Secret | None = None
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = "es256"

    @model_validator(mode="after")
    def _is_complete(self) -> "SigningConfig":
        if (self.certificate is None) != (self.private_key is None):
            raise PydanticCustomError("signing", "give both `certificate` and `private_key`, or neither")
        return self


class LabelsConfig(Strict):
    """`metadata` is for requests that do not say it themselves. `source_type` is IPTC's mark of what AI made."""

    metadata: Metadata = "full"
    source_type: bool = True
    watermark: WatermarkConfig = WatermarkConfig()
    c2pa: SigningConfig = SigningConfig()


TEXTS_ONLY = LabelsConfig(watermark=WatermarkConfig(enabled=False), c2pa=SigningConfig(enabled=False))
"""What a service in a program of your own does: its pixels are the engine's."""

NO_LABELS = TEXTS_ONLY.model_copy(update={"metadata": "none", "source_type": False})
