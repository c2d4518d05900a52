"""The deployments' settings for Ray Serve: replicas, their resources, autoscaling, health checks and timeouts."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from deployments.engine.protocol.engine_config import EngineConfig
from serve_app.config.host_name import HostName
from serve_app.config.strict import Strict

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Cpus = Annotated[float, Field(ge=0, le=1024, allow_inf_nan=False)]


# Serve replaces a replica after three checks in a row that failed or timed out. One whose process hangs is
# gone after at most 5 + 3 * 8 = 29 seconds. An answer takes milliseconds, also while the engine works, but a machine
# that swaps, or loads a model, may keep it for a few seconds.
HEALTH_CHECK_PERIOD_S = 5.0
HEALTH_CHECK_TIMEOUT_S = 8.0


# Requests that neither wait nor run: being decoded, compressed, refused.
_PASSING = 64


class AutoscalingConfig(Strict):
    """Bounds and delays of a deployment that scales with its work (`deployments.autoscaling.WorkPolicy`).

    The defaults are those that the simulation supports (docs/scaling.md).
    """

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: Count = 4
    target_fill: float = Field(default=0.7, gt=0, le=1)
    band: float = Field(default=0.1, gt=0, lt=1)
    catch_up_s: Seconds = 60.0
    upscale_delay_s: Seconds = 5.0
    downscale_delay_s: Seconds = 300.0
    look_back_period_s: Seconds = 15.0
    metrics_interval_s: Seconds = 2.0

    @model_validator(mode="after")
    def _bounds_agree(self) -> "AutoscalingConfig":
        if self.max_replicas < self.min_replicas:
            raise PydanticCustomError("bounds", "max_replicas must be at least min_replicas")
        if self.band >= self.target_fill:
            raise PydanticCustomError("bounds", "band must be smaller than target_fill")
        return self

    def serve_options(self) -> dict[str, Any]:
        """Serve's `autoscaling_config`. Serve's own request counts only wake a deployment that has scaled to zero."""
        policy = {"target_fill": self.target_fill, "band": self.band, "catch_up_s": self.catch_up_s}
        return {
            "min_replicas": self.min_replicas,
            "max_replicas": self.max_replicas,
            "upscale_delay_s": self.upscale_delay_s,
            "downscale_delay_s": self.downscale_delay_s,
            "look_back_period_s": self.look_back_period_s,
            "metrics_interval_s": self.metrics_interval_s,
            "policy": {"policy_function": "deployments.autoscaling:WorkPolicy", "policy_kwargs": policy},
        }


class DeploymentConfig(Strict):
    """One Ray Serve deployment of `ModelReplica`: which models it hosts, on what, with how many replicas.

    `max_surge_percent` of the replicas, rounded up, may run in addition while a new version takes over: an old one
    stops only when a new one has loaded. At 0 the old one stops first, and a version that cannot load leaves a gap.

    `device` auto is a GPU where `num_gpus` asks for one, and else the CPU.

    `queue_limit` bounds the requests that wait in each replica; further ones are refused with the time to come back. A
    queue is as long as its callers are patient: seconds times images a second.

    `model_memory_gib` bounds the weights in memory. `device_memory_gib` bounds weights and running images together;
    without it, on CUDA, what is free when the replica starts, and on a CPU nothing does. `lora_memory_gib` bounds the
    LoRAs that are kept in memory; they never take more than a quarter of the device's. `similar_memory_gib` of main
    memory are for the early states of images whose requests have `cache` similar, 0 refuses these; others continue them
    whose prompts are no farther than `similar_distance` (docs/similar.md).

    `threads` are a replica's on a CPU: by default `num_cpus` of 2 or more, and below that, which only counts, all cores
    that it has. Give them where several replicas share a machine.

    `padded_sizes` are the batch sizes that UNet calls are padded to, in ascending order, the last one `max_rows`: fewer
    of them mean fewer shapes to choose kernels for, more of them less padding.

    `cache_dir` keeps what a replica has made when it started, for the next one on this machine (docs/cold-start.md).
    `auto` is `darkroom` in the cache of the user that the replica runs as; an empty text keeps nothing.

    `backend` is what runs the networks: `torch`, `openvino`, which needs a CPU and fp32, or `auto`: openvino wherever
    it can.

    `preload` says which models a replica loads before it is ready: `all` of them, or the `first` alone, so that it is
    ready earlier; the others are loaded when they are asked for, and their first callers wait for that.
    """

    name: Name
    models: tuple[str, ...] = Field(min_length=1)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    max_rows: int = Field(default=16, ge=2, le=512)
    padded_sizes: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(default=None, min_length=1)
    threads: Count | None = None
    model_memory_gib: float | None = Field(default=None, gt=0)
    device_memory_gib: float | None = Field(default=None, gt=0)
    lora_memory_gib: float = Field(default=2.0, gt=0)
    similar_memory_gib: float = Field(default=0.25, ge=0)
    similar_distance: float = Field(default=0.1, ge=0, le=2)
    cache_dir: str | None = "auto"
    backend: Literal["auto", "openvino", "torch"] = "auto"
    preload: Literal["all", "first"] = "all"
    num_cpus: Cpus = 1.0
    num_gpus: Cpus = 0.0
    memory_gib: float | None = Field(default=None, gt=0)
    replicas: Count = 1
    autoscaling: AutoscalingConfig | None = None
    queue_limit: Count = 128
    graceful_shutdown_timeout_s: Seconds = 120.0
    graceful_shutdown_wait_loop_s: Seconds = 0.5
    health_check_period_s: Seconds = HEALTH_CHECK_PERIOD_S
    health_check_timeout_s: Seconds = HEALTH_CHECK_TIMEOUT_S
    max_surge_percent: int = Field(default=25, ge=0, le=100)
    start_attempts: Count = 3
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="after")
    def _one_way_to_count(self) -> "DeploymentConfig":
        if self.autoscaling is not None and "replicas" in self.model_fields_set:
            raise PydanticCustomError("replicas", "`replicas` and `autoscaling` exclude each other")
        if self.device.startswith("cuda") and not self.num_gpus:
            raise PydanticCustomError(
                "num_gpus", "a deployment on cuda needs `num_gpus`, or Ray gives its GPU to others"
            )
        sizes = self.padded_sizes
        if sizes is not None and (sizes[-1] != self.max_rows or list(sizes) != sorted(set(sizes))):
            raise PydanticCustomError(
                "padded_sizes", "`padded_sizes` must ascend to `max_rows`, {most}", {"most": self.max_rows}
            )
        return self

    def engine_config(self) -> EngineConfig:
        """The settings of this deployment's engines."""
        return EngineConfig(
            # Ray hides no GPU from a replica that asked for none, and may have given it to another one.
            device="cpu" if self.device == "auto" and not self.num_gpus else self.device,
            dtype=self.dtype,
            max_rows=self.max_rows,
            padded_sizes=self.padded_sizes,
            queue_limit=self.queue_limit,
            threads=self._threads,
            model_memory_bytes=_bytes(self.model_memory_gib),
            device_memory_bytes=_bytes(self.device_memory_gib),
            lora_memory_bytes=int(self.lora_memory_gib * 2**30),
            similar_memory_bytes=int(self.similar_memory_gib * 2**30),
            similar_distance=self.similar_distance,
            cache_dir=self.cache_dir,
            backend=self.backend,
        )

    def serve_options(self) -> dict[str, Any]:
        """The keyword arguments of `serve.deployment`."""
        autoscaling = self.autoscaling
        return {
            "name": self.name,
            "ray_actor_options": self._actor_options(),
            "max_ongoing_requests": self._most_ongoing,
            "graceful_shutdown_timeout_s": self.graceful_shutdown_timeout_s,
            "graceful_shutdown_wait_loop_s": self.graceful_shutdown_wait_loop_s,
            "health_check_period_s": self.health_check_period_s,
            "health_check_timeout_s": self.health_check_timeout_s,
            "max_surge_percent": self.max_surge_percent,
            "max_constructor_retry_count": self.start_attempts,
            "user_config": {"log_level": self.log_level},
        } | (
            {"num_replicas": self.replicas}
            if autoscaling is None
            else {"autoscaling_config": autoscaling.serve_options()}
        )

    @property
    def most_replicas(self) -> int:
        """The most replicas at once, while a new version takes over."""
        count = self.replicas if self.autoscaling is None else self.autoscaling.max_replicas
        return count + math.ceil(count * self.max_surge_percent / 100)

    @property
    def _threads(self) -> int | None:
        return self.threads or (int(self.num_cpus) if self.num_cpus >= 2 else None)

    @property
    def _most_ongoing(self) -> int:
        """More than the engine takes, so that the engine refuses, at once and with an estimate; Ray would let callers
        wait in line whatever their priorities and deadlines.
        """
        return self.queue_limit + self.max_rows + _PASSING

    def _actor_options(self) -> dict[str, Any]:
        # A spinning OpenMP pool beside busy neighbours makes a UNet call ten to a hundred times slower, and can be told
        # so only before the process starts. Without OMP_NUM_THREADS Ray derives it from num_cpus, a scheduling figure.
        env = {"OMP_WAIT_POLICY": "passive"}
        if self._threads is not None:
            env["OMP_NUM_THREADS"] = str(self._threads)
        memory = {} if self.memory_gib is None else {"memory": int(self.memory_gib * 2**30)}
        return {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "runtime_env": {"env_vars": env},
            **memory,
        }


class IngressConfig(Strict):
    """The HTTP deployment. `request_timeout_s` is the proxy's, and clients cannot change it (`proxy_headers.py`).

    `hosts` are the names that it answers to, besides those of loopback (`gateway/hosts.py`). Without keys it answers to
    no others; with keys to all, unless some are named.

    On a cluster, `max_replicas_per_node: 1` keeps a node's death from taking all replicas: Ray would put them together.
    """

    hosts: tuple[HostName, ...] = ()
    replicas: Count = 1
    max_replicas_per_node: int | None = Field(default=None, ge=1, le=100)
    num_cpus: Cpus = 0.1
    max_ongoing_requests: Count = 1000
    max_body_bytes: int = Field(default=2**20, ge=1024)
    max_upload_bytes: int = Field(default=2**25, ge=1024)
    max_uploads_in_flight_bytes: int = Field(default=2**28, ge=1024)
    request_timeout_s: Seconds | None = None
    keep_alive_timeout_s: Count = 90
    graceful_shutdown_timeout_s: Seconds = 130.0
    graceful_shutdown_wait_loop_s: Seconds = 0.5

    @model_validator(mode="after")
    def _one_upload_fits(self) -> "IngressConfig":
        if self.max_uploads_in_flight_bytes < self.max_upload_bytes:
            raise PydanticCustomError("bounds", "max_uploads_in_flight_bytes must be at least max_upload_bytes")
        return self

    def serve_options(self) -> dict[str, Any]:
        """The keyword arguments of `serve.deployment`."""
        return {
            "name": "ingress",
            "num_replicas": self.replicas,
            "ray_actor_options": {"num_cpus": self.num_cpus},
            "max_ongoing_requests": self.max_ongoing_requests,
            "graceful_shutdown_timeout_s": self.graceful_shutdown_timeout_s,
            "graceful_shutdown_wait_loop_s": self.graceful_shutdown_wait_loop_s,
            "health_check_period_s": HEALTH_CHECK_PERIOD_S,
            "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
            # It needs no GPU, so there is room for new ones beside the old, unless each node may have only one: where
            # every node has one already, the new ones would wait for the old, and the old for them.
            "max_surge_percent": 100 if self.max_replicas_per_node is None else 0,
        } | ({} if self.max_replicas_per_node is None else {"max_replicas_per_node": self.max_replicas_per_node})


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)
