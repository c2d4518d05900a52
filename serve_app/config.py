"""Every setting of a Darkroom server, as one frozen model. Unknown keys are refused, with the nearest right one."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from deployments.engine.sampler_names import resolve_sampler
from deployments.engine.spec import ModelSpec, PartSpec
from deployments.registry import clashes, known_models
from serve_app.annotator_config import AnnotatorsConfig
from serve_app.config_errors import ConfigError, complaints, nearest
from serve_app.strict import Strict

_PACKAGED = Path(__file__).parent / "configs"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Cpus = Annotated[float, Field(ge=0, le=1024, allow_inf_nan=False)]


class PartConfig(Strict):
    """Where a ControlNet, or another part of a model, comes from: a folder, or a hub repository at a revision."""

    source: str
    revision: str | None = None
    licence: str = ""

    def spec(self) -> PartSpec:
        """As the engine takes it."""
        return PartSpec(self.source, self.revision, self.licence)


class ModelConfig(Strict):
    """A model that the registry does not know, or, by its registry name, what shall differ from its row."""

    name: Name
    source: str | None = None
    revision: str | None = None
    aliases: tuple[str, ...] | None = None
    native_size: int | None = Field(default=None, ge=64, le=2048)
    max_pixels: int | None = Field(default=None, ge=64 * 64)
    default_sampler: str | None = None
    licence: str | None = None
    inpaints_only: bool | None = None
    controlnets: dict[Name, PartConfig] | None = None
    parts: dict[Literal["unet", "vae", "text_encoder", "tokenizer", "scheduler"], PartConfig] | None = None

    @field_validator("default_sampler")
    @classmethod
    def _sampler_is_known(cls, sampler: str | None) -> str | None:
        return None if sampler is None else resolve_sampler(sampler)

    def spec(self) -> ModelSpec:
        """The registry's row with this entry's settings over it, or a row of its own."""
        made_of = {"controlnets": self.controlnets, "parts": self.parts}
        given = {key: value for key, value in self.model_dump(exclude=set(made_of)).items() if value is not None}
        for place, named in made_of.items():
            if named is not None:
                given[place] = {name: part.spec() for name, part in named.items()}
        row = known_models().get(self.name)
        if row is not None:
            return replace(row, **given)
        if self.source is None:
            raise PydanticCustomError("no_source", "a model that the registry does not know needs a `source`")
        return ModelSpec(**given)

    @model_validator(mode="after")
    def _is_complete(self) -> "ModelConfig":
        self.spec()
        return self


class AutoscalingConfig(Strict):
    """Bounds and delays of a deployment that grows with its work (`deployments.autoscaling.WorkPolicy`)."""

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: Count = 4
    target_fill: float = Field(default=0.8, gt=0, le=1)
    band: float = Field(default=0.2, gt=0, lt=1)
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
        """As Serve's `autoscaling_config`. Serve's own request counts only wake a deployment that sleeps at zero."""
        policy = {"target_fill": self.target_fill, "band": self.band}
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
    """One Ray Serve deployment of `ModelReplica`: which models it hosts, on what, and how many of it there are."""

    name: Name
    models: tuple[str, ...] = Field(min_length=1)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    max_rows: int = Field(default=16, ge=2, le=512)
    threads: Count | None = None
    model_memory_gib: float | None = Field(default=None, gt=0)
    num_cpus: Cpus = 1.0
    num_gpus: Cpus = 0.0
    memory_gib: float | None = Field(default=None, gt=0)
    replicas: Count = 1
    autoscaling: AutoscalingConfig | None = None
    max_ongoing_requests: Count = 64
    graceful_shutdown_timeout_s: Seconds = 120.0
    graceful_shutdown_wait_loop_s: Seconds = 0.5
    health_check_period_s: Seconds = 10.0
    health_check_timeout_s: Seconds = 30.0
    start_attempts: Count = 3
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="after")
    def _one_way_to_count(self) -> "DeploymentConfig":
        if self.autoscaling is not None and "replicas" in self.model_fields_set:
            raise PydanticCustomError("replicas", "`replicas` and `autoscaling` exclude each other")
        if self.device.startswith("cuda") and not self.num_gpus:
            raise PydanticCustomError("num_gpus", "a deployment on cuda needs `num_gpus`, or Ray hides the GPU from it")
        return self

    def engine_options(self) -> dict[str, Any]:
        """The keyword arguments of `ModelReplica`, besides its models."""
        return {
            "device": self.device,
            "dtype": self.dtype,
            "max_rows": self.max_rows,
            "threads": self.threads,
            "model_memory_bytes": None if self.model_memory_gib is None else int(self.model_memory_gib * 2**30),
        }

    def serve_options(self) -> dict[str, Any]:
        """The keyword arguments of `serve.deployment`."""
        autoscaling = self.autoscaling
        return {
            "name": self.name,
            "ray_actor_options": self._actor_options(),
            "max_ongoing_requests": self.max_ongoing_requests,
            "graceful_shutdown_timeout_s": self.graceful_shutdown_timeout_s,
            "graceful_shutdown_wait_loop_s": self.graceful_shutdown_wait_loop_s,
            "health_check_period_s": self.health_check_period_s,
            "health_check_timeout_s": self.health_check_timeout_s,
            "max_constructor_retry_count": self.start_attempts,
            "user_config": {"log_level": self.log_level},
        } | (
            {"num_replicas": self.replicas}
            if autoscaling is None
            else {"autoscaling_config": autoscaling.serve_options()}
        )

    def _actor_options(self) -> dict[str, Any]:
        # Ray derives OMP_NUM_THREADS from num_cpus, a scheduling figure, and a spinning OpenMP pool beside busy
        # neighbours makes a UNet call ten to a hundred times slower: both are set before the process starts.
        env = {"OMP_WAIT_POLICY": "passive"}
        if self.threads is not None:
            env["OMP_NUM_THREADS"] = str(self.threads)
        memory = {} if self.memory_gib is None else {"memory": int(self.memory_gib * 2**30)}
        return {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "runtime_env": {"env_vars": env},
            **memory,
        }


class IngressConfig(Strict):
    """The HTTP deployment. `request_timeout_s` is the proxy's; clients may lower or lift it by a header of Ray's."""

    replicas: Count = 1
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

    def api_options(self) -> dict[str, Any]:
        """The keyword arguments of `create_api`."""
        return {
            "max_body_bytes": self.max_body_bytes,
            "max_upload_bytes": self.max_upload_bytes,
            "max_uploads_in_flight_bytes": self.max_uploads_in_flight_bytes,
        }

    def serve_options(self) -> dict[str, Any]:
        """The keyword arguments of `serve.deployment`."""
        return {
            "name": "ingress",
            "num_replicas": self.replicas,
            "ray_actor_options": {"num_cpus": self.num_cpus},
            "max_ongoing_requests": self.max_ongoing_requests,
            "graceful_shutdown_timeout_s": self.graceful_shutdown_timeout_s,
            "graceful_shutdown_wait_loop_s": self.graceful_shutdown_wait_loop_s,
        }


class AppConfig(Strict):
    """The whole of it. `models` adds to the registry or overrides its rows; the first model hosted is the default."""

    models: tuple[ModelConfig, ...] = ()
    deployments: tuple[DeploymentConfig, ...] = Field(min_length=1)
    annotators: AnnotatorsConfig = AnnotatorsConfig()
    ingress: IngressConfig = IngressConfig()

    @model_validator(mode="after")
    def _names_are_clear(self) -> "AppConfig":
        for place, names in (
            ("models", [model.name for model in self.models]),
            ("deployments", ["ingress", *(deployment.name for deployment in self.deployments)]),
        ):
            if doubled := sorted({name for name in names if names.count(name) > 1}):
                raise PydanticCustomError("duplicate", "{text}", {"text": f"{place}: the name {doubled[0]!r} is taken"})
        if doubled := clashes([spec for deployment in self.deployments for spec in self.specs_of(deployment)]):
            text = f"deployments: more than one hosted model answers to {doubled[0]!r}"
            raise PydanticCustomError("duplicate", "{text}", {"text": text})
        return self

    def specs_of(self, deployment: DeploymentConfig) -> tuple[ModelSpec, ...]:
        """The models that `deployment` hosts."""
        rows = known_models() | {model.name: model.spec() for model in self.models}
        for name in deployment.models:
            if name not in rows:
                text = f"deployment {deployment.name!r}: there is no model {name!r}{nearest(name, rows)}"
                raise PydanticCustomError("unknown_model", "{text}", {"text": text})
        return tuple(rows[name] for name in deployment.models)


def load_config(path_or_name: str | Path) -> AppConfig:
    """The configuration in a YAML file, or the packaged one of that name (`demo`, `production`, `compact`).

    Raises ConfigError, which says where the file is wrong and what was probably meant.
    """
    text = _read(str(path_or_name))
    try:
        return AppConfig.model_validate(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        raise ConfigError(f"{path_or_name}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path_or_name}: {line}" for line in complaints(error))) from None


def packaged_configs() -> list[str]:
    """The names that `load_config` knows."""
    return sorted(path.stem for path in _PACKAGED.glob("*.yaml"))


def _read(path_or_name: str) -> str:
    if path_or_name in packaged_configs():
        return (_PACKAGED / f"{path_or_name}.yaml").read_text()
    if not Path(path_or_name).is_file():
        known = ", ".join(packaged_configs())
        raise ConfigError(f"{path_or_name}: neither a file nor one of the packaged configurations ({known})")
    try:
        return Path(path_or_name).read_text()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path_or_name}: cannot be read as text") from None
