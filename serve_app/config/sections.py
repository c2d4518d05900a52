"""The sections of the server's configuration: cache, jobs, limits, idempotency, surfaces, Redis, logging, training."""

from typing import Any, Final, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from deployments.training.lora.settings import TrainingLimits
from serve_app.config.secret import Secret
from serve_app.config.strict import Strict


class CacheConfig(Strict):
    """`memory_bytes` per ingress process; a result is dropped `ttl_s` seconds after it was made."""

    enabled: bool = True
    memory_bytes: int = Field(default=2**28, ge=0)
    ttl_s: float = Field(default=86_400.0, gt=0, le=31_536_000)


class JobsConfig(Strict):
    """A batch has at most `max_entries` and `max_images`; up to `sync_images` its caller may wait for the answer.

    Each batch runs `in_flight` entries at a time, and each ingress process `running` jobs. `waiting` jobs may be
    unfinished, `waiting_per_tenant` of them one tenant's, if keys tell tenants apart. Finished jobs are kept for
    `keep_s` seconds, at most `kept` of them with `max_bytes` of images: the oldest are dropped first. The pictures that
    unfinished jobs start from have as many bytes again, one tenant's `picture_bytes_per_tenant`. In Redis, if there is
    one, any ingress takes over a job whose own ingress has been silent for `lease_s` seconds; without Redis jobs live
    and die with the ingress.
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
    picture_bytes_per_tenant: int = Field(default=2**27, ge=2**20)
    lease_s: float = Field(default=15.0, ge=0.1, le=600)

    @model_validator(mode="after")
    def _limits_agree(self) -> "JobsConfig":
        if self.sync_images > self.max_images:
            raise PydanticCustomError("bounds", "sync_images must be at most max_images")
        return self


class Limits(Strict):
    """The limits of one caller; None is unlimited. Costs are in megapixel-steps."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    concurrent_requests: int | None = Field(default=None, ge=1)
    cost_per_minute: int | None = Field(default=None, ge=1)
    max_cost: int | None = Field(default=None, ge=1)

    def with_overrides(self, own: "Limits") -> "Limits":
        """Returns these limits with those that `own` sets in their place."""
        return self.model_copy(update=own.model_dump(exclude_unset=True))

    @property
    def costliest(self) -> int | None:
        """The most that one request may cost: no more than a minute's, or it would be told to come back for ever."""
        return min((cost for cost in (self.max_cost, self.cost_per_minute) if cost is not None), default=None)


NO_LIMITS: Final = Limits()


class LimitsConfig(Strict):
    """`per_key` applies to every key without limits of its own, `per_address` to callers without a key.

    `proxies` is how many of your proxies every request passes, each of which appends the address that it was asked from
    to X-Forwarded-For. 0 trusts no header, and takes the connection's own address.
    """

    per_key: Limits = NO_LIMITS
    per_address: Limits = NO_LIMITS
    proxies: int = Field(default=0, ge=0, le=16)


class IdempotencyConfig(Strict):
    """`memory_bytes` per ingress process; an answer is kept for `ttl_s` seconds."""

    memory_bytes: int = Field(default=2**26, ge=2**20)
    ttl_s: float = Field(default=86_400.0, gt=0, le=2_592_000)


RETIRED_MODELS: Final = (
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-1.5",
    "gpt-image-2",
    "chatgpt-image-latest",
    "dall-e-2",
    "dall-e-3",
)
"""Names that clients of OpenAI's have in their code, where nobody can change them."""


class OpenAIConfig(Strict):
    """The endpoints for OpenAI's clients. `retired_models` are names that mean the default model; `[]` switches it off.

    A hosted model that has one of these names goes before.
    """

    retired_models: tuple[str, ...] = RETIRED_MODELS


class PlaygroundConfig(Strict):
    """The page at `/` on which people try the server; `enabled: false` leaves it out."""

    enabled: bool = True


class ResultUrlsConfig(Strict):
    """Addresses instead of images, for OpenAI's clients that ask for `url`. An image is kept for `ttl_s` seconds.

    All together have at most `max_bytes`, in Redis, or without it in the one ingress. `public_url` is where callers
    reach the server; without it, the address that they asked at.
    """

    ttl_s: int = Field(default=3600, ge=60, le=7 * 86_400)
    max_bytes: int = Field(default=2**30, ge=2**20)
    public_url: str | None = Field(default=None, pattern=r"^https?://[^\s?#]+$", max_length=1_000)


class RedisConfig(Strict):
    """The connection to Redis: `redis://` or, with TLS, `rediss://`. `prefix` precedes every key in it.

    A user goes in the URL (`redis://user@host:6379/0`), its `password` in the environment or a file. `key`, the same
    for all processes that share it, signs results, answers and jobs there: whoever can write to Redis cannot forge
    entries.
    """

    url: str = Field(pattern=r"^rediss?://")
    key: Secret
    password: Secret | None = None
    prefix: str = Field(default="darkroom:", max_length=64)
    timeout_ms: float = Field(default=50.0, gt=0, le=10_000)
    max_connections: int = Field(default=32, ge=1)


class SimilarConfig(Strict):
    """What replicas share of `cache: similar`, with `redis` (docs/similar.md): the early states of images.

    A deployment has at most `shared_bytes` there, 0 shares nothing; a state is kept for `ttl_s` seconds.
    """

    shared_bytes: int = Field(default=2**28, ge=0)
    ttl_s: int = Field(default=3600, ge=60, le=7 * 86_400)


class LoggingConfig(Strict):
    """The log of requests and of the server itself. `prompts`: whether requests' lines contain prompts."""

    encoding: Literal["json", "text"] = "json"
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    prompts: bool = False

    def serve_options(self) -> dict[str, Any]:
        """Ray Serve's `logging_config` for a deployment, without its own access log, which says less than ours."""
        return {"encoding": self.encoding.upper(), "log_level": self.level, "enable_access_log": False}


class TrainingAllowance(Strict):
    """The most that one training may take: `pictures`, their `megabytes`, unpacked, and `megapixels` together, `steps`,
    and `minutes`.
    """

    pictures: int = Field(default=100, ge=1, le=500)
    megabytes: int = Field(default=64, ge=1, le=1000)
    megapixels: int = Field(default=400, ge=1, le=2000)
    steps: int = Field(default=4000, ge=1, le=20_000)
    minutes: float = Field(default=120.0, gt=0, le=1440)

    def with_overrides(self, own: "TrainingAllowance | None") -> "TrainingAllowance":
        """Returns this allowance with what `own` sets in its place."""
        return self if own is None else self.model_copy(update=own.model_dump(exclude_unset=True))

    def limits(self) -> TrainingLimits:
        """Returns it as trainings take it."""
        return TrainingLimits(
            pictures=self.pictures,
            bytes=self.megabytes * 1_000_000,
            pixels=self.megapixels * 1_000_000,
            steps=self.steps,
            minutes=self.minutes,
        )


class TrainingConfig(Strict):
    """Trainings by HTTP. Each has a folder of its own in `folder`, which all ingress processes see.

    A training runs in a process of its own on `device`. With Ray it waits for `num_cpus` and `num_gpus` that nothing
    else has; without, it runs beside whatever else the machine does. It uses a GPU only if `num_gpus` says so; on
    several, of one node, it runs in a process for each, which share its batches' rows. An ingress process runs
    `running` at a time; of one tenant `unfinished` may wait or run, and `kept` of those that are over stay: the oldest
    are removed when it begins another. `limits` are for each; keys may have their own.
    """

    folder: str = Field(min_length=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    running: int = Field(default=1, ge=1, le=64)
    unfinished: int = Field(default=4, ge=1, le=1000)
    kept: int = Field(default=20, ge=1, le=1000)
    limits: TrainingAllowance = TrainingAllowance()

    @model_validator(mode="after")
    def _gpu_is_its_own(self) -> "TrainingConfig":
        if self.device == "cuda" and not self.num_gpus:
            raise PydanticCustomError("num_gpus", "trainings on cuda need `num_gpus`")
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise PydanticCustomError("num_gpus", "`num_gpus` above 1 must be a whole number")
        return self

    @property
    def own_device(self) -> str:
        """The device for trainings. Ray hides no GPU from a task that asked for none: `auto` must not look for it."""
        return "cpu" if self.device == "auto" and not self.num_gpus else self.device

    @property
    def processes(self) -> int:
        """How many processes train one LoRA together: one for each GPU."""
        return 1 if self.own_device == "cpu" else max(1, int(self.num_gpus))
