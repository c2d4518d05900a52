"""The section of the configuration for callbacks: requests of this server's to addresses that callers name."""

from typing import Annotated, Final

from pydantic import Field, IPvAnyNetwork, model_validator
from pydantic_core import PydanticCustomError

from serve_app.config.host_name import HostName
from serve_app.config.secret import Secret
from serve_app.config.strict import Strict

HTTPS_PORT: Final = 443


class CallbacksConfig(Strict):
    """Webhooks when jobs end, and images put to callers' addresses. Without this section there are neither.

    `webhook_secrets` sign webhooks; every message is signed with all of them, so that one can be replaced. `uploads`
    allows jobs to have their images put elsewhere. Links in webhooks begin with `public_url`, or with the address that
    the job's caller used.

    Only `ports` are called, only over https unless `allow_http`, and only `hosts` if there are any. Addresses that are
    not public are not called, unless they are in `allow_networks`.

    A try may take `timeout_s`, or `upload_timeout_s`, from the look-up of the name to the answer's status. It is
    repeated after `first_retry_s`, then after twice as long each time, up to `longest_retry_s`; up to half of each wait
    is left out at random. It is given up `webhook_retry_for_s`, or `upload_retry_for_s`, after the message was made.
    Each ingress makes at most `in_flight` tries of either kind at a time, and `in_flight_per_host` to one host;
    `waiting` messages of either kind are kept. Where keys tell tenants apart, one has at most half of either.
    """

    webhook_secrets: tuple[Secret, ...] = Field(default=(), max_length=4)
    uploads: bool = False
    public_url: str | None = Field(default=None, pattern=r"^https?://[^\s?#]+$", max_length=1_000)
    allow_http: bool = False
    ports: tuple[Annotated[int, Field(ge=1, le=65_535)], ...] = Field(default=(HTTPS_PORT,), min_length=1)
    hosts: tuple[HostName, ...] = ()
    allow_networks: tuple[IPvAnyNetwork, ...] = ()
    timeout_s: float = Field(default=15.0, ge=0.1, le=120)
    upload_timeout_s: float = Field(default=60.0, ge=0.1, le=600)
    first_retry_s: float = Field(default=5.0, ge=0.01, le=600)
    longest_retry_s: float = Field(default=1800.0, ge=0.01, le=86_400)
    webhook_retry_for_s: float = Field(default=21_600.0, ge=0, le=604_800)
    upload_retry_for_s: float = Field(default=900.0, ge=0, le=86_400)
    in_flight: int = Field(default=16, ge=1, le=256)
    in_flight_per_host: int = Field(default=4, ge=1, le=256)
    waiting: int = Field(default=10_000, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _does_something(self) -> "CallbacksConfig":
        if not self.webhook_secrets and not self.uploads:
            raise PydanticCustomError(
                "callbacks", "name `webhook_secrets`, or `uploads: true`, or leave `callbacks` out"
            )
        if self.first_retry_s > self.longest_retry_s:
            raise PydanticCustomError("bounds", "first_retry_s must be at most longest_retry_s")
        return self
