"""The configuration of what may be asked for and given out: safety checkers of models (docs/safety.md)."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from deployments.engine.protocol.safety import CheckerSpec, SafetySpec
from serve_app.config.strict import Strict

CheckerName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Setting = str | int | float | bool | None | list[Any] | dict[str, Any]


class CheckerConfig(Strict):
    """A checker: Stable Diffusion's own network, from the model's source or another, or a class with its settings."""

    name: CheckerName
    source: str | None = None
    revision: str | None = None
    class_path: str = Field(default="", pattern=r"^$|^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=200)
    settings: dict[str, Setting] = Field(default_factory=dict, max_length=100)

    def spec(self) -> CheckerSpec:
        """The specification that the engine takes."""
        return CheckerSpec(self.name, self.source, self.revision, self.class_path, self.settings)


class SafetyConfig(Strict):
    """How finished images are checked. A check of more than `timeout_s` seconds counts as failed."""

    policy: Literal["off", "report", "required"]
    checkers: tuple[CheckerConfig, ...] = Field(default=(), max_length=8)
    timeout_s: float = Field(default=30.0, gt=0, le=600, allow_inf_nan=False)

    @model_validator(mode="after")
    def _is_complete(self) -> "SafetyConfig":
        try:
            self.spec()
        except ValueError as error:
            raise PydanticCustomError("safety", "{text}", {"text": str(error)}) from None
        return self

    def spec(self) -> SafetySpec:
        """The specification that the engine takes."""
        return SafetySpec(self.policy, tuple(checker.spec() for checker in self.checkers), self.timeout_s)
