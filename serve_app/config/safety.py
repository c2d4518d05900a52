"""The configuration of what may be asked for and given out: blocklists, and models' checkers (docs/safety.md)."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from deployments.engine.protocol.fields import check_lines
from deployments.engine.protocol.safety import CheckerSpec, SafetySpec
from serve_app.config.secret import Secret
from serve_app.config.strict import Strict
from serve_app.generation.blocklist import MAX_PATTERN, BadPattern, BlockRule, compile_pattern

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


_Word = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(check_lines)]
_Pattern = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PATTERN)]


class BlockRuleConfig(Strict):
    """A rule of the blocklist. `words_from` holds further words and phrases, one a line; lines with # are comments."""

    name: CheckerName
    words: tuple[_Word, ...] = Field(default=(), max_length=10_000)
    words_from: Secret | None = None
    patterns: tuple[_Pattern, ...] = Field(default=(), max_length=100)
    negative_prompts: bool = False

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for number, pattern in enumerate(patterns):
            try:
                compile_pattern(pattern)
            except BadPattern as error:
                raise PydanticCustomError("pattern", "{text}", {"text": f"pattern {number} {error}"}) from None
        return patterns

    @model_validator(mode="after")
    def _says_something(self) -> "BlockRuleConfig":
        if not (self.words or self.words_from or self.patterns):
            raise PydanticCustomError("empty", "give `words`, `words_from` or `patterns`")
        return self

    def rule(self) -> BlockRule:
        """Returns the rule, with the words that are elsewhere. Raises ConfigError where these cannot be read."""
        words = self.words
        if self.words_from is not None:
            lines = self.words_from.read(f"blocklist: {self.name}: words_from").splitlines()
            words += tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
        return BlockRule(self.name, words, self.patterns, self.negative_prompts)
