"""Settings of batches and jobs."""

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from serve_app.config.strict import Strict


class JobsConfig(Strict):
    """A batch has at most `max_entries` and `max_images`; up to `sync_images` its caller may wait for the answer.

    Of each batch `in_flight` entries run at a time, and `running` jobs in each ingress process; `waiting` jobs may be
    unfinished, and of these `waiting_per_tenant` of one tenant, where there are keys that tell tenants apart. Finished
    ones are kept for `keep_s` seconds, `kept` of them at most and `max_bytes` of pictures: the oldest go first. In
    Redis, where there is one, any ingress takes up what one has left behind, `lease_s` seconds after it was last heard
    of; else they live and die with the ingress.
    """

    max_entries: int = Field(default=1000, ge=1)
    max_images: int = Field(default=2000, ge=1)
    sync_images: int = Field(default=32, ge=0)
    in_flight: int = Field(default=32, ge=1, le=1000)
    running: int = Field(default=4, ge=1, le=100)
    waiting: int = Field(default=100, ge=1)
    waiting_per_tenant: int = Field(default=25, ge=1)
    keep_s: int = Field(default=3600, ge=1)
    kept: int = Field(default=1000, ge=1)
    max_bytes: int = Field(default=2**29, ge=2**20)
    lease_s: float = Field(default=15.0, ge=0.1, le=600)

    @model_validator(mode="after")
    def _limits_agree(self) -> "JobsConfig":
        if self.sync_images > self.max_images:
            raise PydanticCustomError("bounds", "sync_images must be at most max_images")
        return self
