"""Every setting of a Darkroom server, as one frozen model. An unknown key is refused, and the nearest one suggested."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from deployments.annotators.spec import network_sources
from deployments.engine.protocol.numerics import numerics_of
from deployments.engine.protocol.sampler_names import resolve_sampler
from deployments.engine.protocol.settings import MAX_STEPS
from deployments.engine.protocol.spec import IpAdapterSpec, ModelSpec, PartSpec
from deployments.registry import find_clashes, known_models
from deployments.weights.local_files import digest_sources
from serve_app.config.annotators import AnnotatorsConfig
from serve_app.config.callbacks import CallbacksConfig
from serve_app.config.deployments import DeploymentConfig, IngressConfig, Name
from serve_app.config.embeddings import EmbeddingsConfig
from serve_app.config.errors import ConfigError, describe_errors, read_yaml, suggest
from serve_app.config.labels import LabelsConfig
from serve_app.config.loras import LorasConfig
from serve_app.config.safety import BlockRuleConfig, SafetyConfig
from serve_app.config.secret import Secret
from serve_app.config.sections import (
    CacheConfig,
    IdempotencyConfig,
    JobsConfig,
    LimitsConfig,
    LoggingConfig,
    OpenAIConfig,
    PlaygroundConfig,
    RedisConfig,
    ResultUrlsConfig,
    SimilarConfig,
    TrainingConfig,
)
from serve_app.config.strict import Strict
from serve_app.config.templates import TemplateConfig, WildcardLines, WildcardName
from serve_app.config.upscalers import UpscalerConfig

_PACKAGED = Path(__file__).parent / "packaged"


class PartConfig(Strict):
    """The source of a ControlNet, or of another part of a model: a folder, or a hub repository at a revision. `mode` is
    the number by which a union ControlNet knows this kind of hint.
    """

    source: str
    revision: str | None = None
    licence: str = ""
    mode: int | None = Field(default=None, ge=0)

    def spec(self) -> PartSpec:
        """The specification that the engine takes."""
        return PartSpec(self.source, self.revision, self.licence, self.mode)


class IpAdapterConfig(Strict):
    """An IP-Adapter: a safetensors file, or one in a pinned hub repository, and the image encoder that goes with it.

    `image_encoder` is a folder, or a repository at `image_encoder_revision`; in it the encoder is in `subfolder`.
    """

    source: str
    image_encoder: str
    revision: str | None = None
    file: str = ""
    image_encoder_revision: str | None = None
    subfolder: str = ""
    licence: str = ""

    def spec(self) -> IpAdapterSpec:
        """The specification that the engine takes."""
        return IpAdapterSpec(**self.model_dump())


PartName = Literal["unet", "vae", "text_encoder", "tokenizer", "scheduler", "text_encoder_2", "tokenizer_2"]


class ModelConfig(Strict):
    """A model that the registry lacks, or, by its name there, the settings that differ from its row."""

    name: Name
    source: str | None = None
    revision: str | None = None
    aliases: tuple[str, ...] | None = None
    native_size: int | None = Field(default=None, ge=64, le=2048)
    max_pixels: int | None = Field(default=None, ge=64 * 64)
    default_sampler: str | None = None
    default_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    default_guidance_scale: float | None = Field(default=None, ge=0.0, le=50.0)
    licence: str | None = None
    inpaints_only: bool | None = None
    vae_tiling: bool | None = None
    file: str | None = None
    config: str | None = None
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    controlnets: dict[Name, PartConfig] | None = None
    parts: dict[PartName, PartConfig] | None = None
    ip_adapters: dict[Name, IpAdapterConfig] | None = None
    safety: SafetyConfig | None = None

    @field_validator("default_sampler")
    @classmethod
    def _sampler_is_known(cls, sampler: str | None) -> str | None:
        return None if sampler is None else resolve_sampler(sampler)

    def spec(self) -> ModelSpec:
        """Returns the registry's row with this entry's settings over it, or a row of its own."""
        made_of = {"controlnets": self.controlnets, "parts": self.parts, "ip_adapters": self.ip_adapters}
        given = self.model_dump(exclude={*made_of, "safety"}, exclude_none=True)
        if self.safety is not None:
            given["safety"] = self.safety.spec()
        for place, named in made_of.items():
            if named is not None:
                given[place] = {name: each.spec() for name, each in named.items()}
        row = known_models().get(self.name)
        if row is not None:
            # A commit belongs to one repository: the row's means nothing to another source.
            row = row if self.source is None else replace(row, revision=None)
            return replace(row, **given)
        if self.source is None:
            raise PydanticCustomError("no_source", "a model that the registry does not know needs a `source`")
        return ModelSpec(**given)

    @model_validator(mode="after")
    def _is_complete(self) -> "ModelConfig":
        self.spec()
        return self


class AppConfig(Strict):
    """The whole configuration. `models` adds to the registry or overrides its rows; the first hosted one is default.
    `templates` adds to the built-in prompt templates, or replaces those of the same names. `wildcards` are the lists
    that dynamic prompts name. `safety` is for every model without a section of its own.
    `blocklist` refuses prompts.
    `embeddings` are learnt ones that prompts may name. With `training` callers may have LoRAs trained.
    `similar` is what replicas share of the states of images.

    `keys` says where the list of API keys is. `without_keys` allows a server without any, even where others can reach
    it.
    """

    models: tuple[ModelConfig, ...] = ()
    deployments: tuple[DeploymentConfig, ...] = Field(min_length=1)
    annotators: AnnotatorsConfig = AnnotatorsConfig()
    upscalers: tuple[UpscalerConfig, ...] = Field(default=(), max_length=64)
    loras: LorasConfig = LorasConfig()
    ingress: IngressConfig = IngressConfig()
    cache: CacheConfig = CacheConfig()
    logging: LoggingConfig = LoggingConfig()
    keys: Secret | None = None
    without_keys: bool = False
    limits: LimitsConfig = LimitsConfig()
    idempotency: IdempotencyConfig = IdempotencyConfig()
    jobs: JobsConfig = JobsConfig()
    openai: OpenAIConfig = OpenAIConfig()
    templates: tuple[TemplateConfig, ...] = ()
    wildcards: dict[WildcardName, WildcardLines] = Field(default_factory=dict, max_length=1_000)
    playground: PlaygroundConfig = PlaygroundConfig()
    result_urls: ResultUrlsConfig | None = None
    callbacks: CallbacksConfig | None = None
    labels: LabelsConfig = LabelsConfig()
    safety: SafetyConfig | None = None
    blocklist: tuple[BlockRuleConfig, ...] = Field(default=(), max_length=50)
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    training: TrainingConfig | None = None
    redis: RedisConfig | None = None
    similar: SimilarConfig = SimilarConfig()

    @model_validator(mode="after")
    def _names_are_clear(self) -> "AppConfig":
        for place, names in (
            ("models", [model.name for model in self.models]),
            ("templates", [template.name for template in self.templates]),
            ("upscalers", [upscaler.name for upscaler in self.upscalers]),
            ("blocklist", [rule.name for rule in self.blocklist]),
            ("deployments", ["ingress", *(deployment.name for deployment in self.deployments)]),
        ):
            if doubled := sorted({name for name in names if names.count(name) > 1}):
                raise PydanticCustomError("duplicate", "{text}", {"text": f"{place}: the name {doubled[0]!r} is taken"})
        if doubled := find_clashes([spec for deployment in self.deployments for spec in self.specs_of(deployment)]):
            text = f"deployments: more than one hosted model answers to {doubled[0]!r}"
            raise PydanticCustomError("duplicate", "{text}", {"text": text})
        return self

    @model_validator(mode="after")
    def _loras_have_models(self) -> "AppConfig":
        hosted = [spec for deployment in self.deployments for spec in self.specs_of(deployment)]
        for row in self.loras.named:
            for name in row.models:
                if not any(spec.has_name(name) for spec in hosted):
                    names = [spec.name for spec in hosted]
                    text = f"loras: {row.name!r} is for {name!r}, which is not hosted{suggest(name, names)}"
                    raise PydanticCustomError("unknown_model", "{text}", {"text": text})
        return self

    @model_validator(mode="after")
    def _trained_loras_are_served(self) -> "AppConfig":
        if self.training is not None and self.loras.folder is None:
            raise PydanticCustomError("folder", "`training` needs `loras.folder`, where what is trained is served from")
        return self

    @model_validator(mode="after")
    def _result_urls_resolve(self) -> "AppConfig":
        if self.result_urls is not None and self.redis is None and self.ingress.replicas > 1:
            raise PydanticCustomError("redis", "`result_urls` with several ingress replicas need `redis`")
        return self

    @model_validator(mode="after")
    def _images_outlive_their_uploads(self) -> "AppConfig":
        if (
            self.callbacks is not None
            and self.callbacks.uploads
            and self.callbacks.upload_retry_for_s > self.jobs.keep_s
        ):
            raise PydanticCustomError("bounds", "callbacks.upload_retry_for_s must be at most jobs.keep_s")
        return self

    @model_validator(mode="after")
    def _keys_are_clear(self) -> "AppConfig":
        if self.keys is not None and self.without_keys:
            raise PydanticCustomError("keys", "`keys` and `without_keys` exclude each other")
        return self

    def numerics(self) -> dict[str, Any]:
        """By model, everything its images depend on besides its weights and the request, as plain data.

        It looks at the files of annotators and upscalers: what is kept of earlier ones is out of date.
        """
        helpers = [part.source for spec in self.annotators.specs().values() for part in network_sources(spec).values()]
        files = digest_sources([*helpers, *(upscaler.source for upscaler in self.upscalers)])
        annotators = self.annotators.model_dump(mode="json")
        upscalers = [upscaler.model_dump(mode="json") for upscaler in self.upscalers]
        return {
            spec.name: {
                "device": deployment.device,
                "dtype": deployment.dtype,
                "max_rows": deployment.max_rows,
                "padded_sizes": deployment.padded_sizes,
                "backend": numerics_of(deployment.backend, deployment.device),
                "annotators": annotators,
                "upscalers": upscalers,
                "files": files,
            }
            for deployment in self.deployments
            for spec in self.specs_of(deployment)
        }

    def specs_of(self, deployment: DeploymentConfig) -> tuple[ModelSpec, ...]:
        """The models that `deployment` hosts."""
        rows = known_models() | {model.name: model.spec() for model in self.models}
        for name in deployment.models:
            if name not in rows:
                text = f"deployment {deployment.name!r}: there is no model {name!r}{suggest(name, rows)}"
                raise PydanticCustomError("unknown_model", "{text}", {"text": text})
        return tuple(self._with_safety(rows[name]) for name in deployment.models)

    def _with_safety(self, spec: ModelSpec) -> ModelSpec:
        has_own = any(model.name == spec.name and model.safety is not None for model in self.models)
        return spec if self.safety is None or has_own else replace(spec, safety=self.safety.spec())


def load_config(path_or_name: str | Path) -> AppConfig:
    """Loads the configuration from a YAML file, or the packaged one of that name (`demo`, `production`, `compact`).

    A file with `extends: production` contains only what differs from that one: sections are merged field by field,
    lists replaced whole. Raises ConfigError, which says where the file is wrong and what was probably meant.
    """
    try:
        return AppConfig.model_validate(_extend(_read(str(path_or_name)) or {}))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path_or_name}: {line}" for line in describe_errors(error))) from None


def packaged_configs() -> list[str]:
    """The names that `load_config` knows."""
    return sorted(path.stem for path in _PACKAGED.glob("*.yaml"))


def _extend(document: Any) -> Any:
    """Returns `document`, merged into the packaged configuration that it extends, if any."""
    if not isinstance(document, dict) or "extends" not in document:
        return document
    changes = {name: value for name, value in document.items() if name != "extends"}
    if document["extends"] not in packaged_configs():
        raise ConfigError(f"extends: there is {', '.join(packaged_configs())}")
    return _merge(_read(document["extends"]), changes)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    sections = {
        name: _merge(base[name], changes[name])
        for name in base.keys() & changes.keys()
        if isinstance(base[name], dict) and isinstance(changes[name], dict)
    }
    return {**base, **changes, **sections}


def _read(path_or_name: str) -> Any:
    if path_or_name in packaged_configs():
        return read_yaml(_PACKAGED / f"{path_or_name}.yaml")
    if not Path(path_or_name).is_file():
        known = ", ".join(packaged_configs())
        raise ConfigError(f"{path_or_name}: neither a file nor one of the packaged configurations ({known})")
    return read_yaml(Path(path_or_name))
