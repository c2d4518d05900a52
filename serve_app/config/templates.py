"""The configuration's own prompt templates, and the lists that dynamic prompts name."""

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, field_validator

from deployments.engine.protocol.fields import check_lines
from serve_app.config.strict import Strict
from serve_app.generation.templates import PromptTemplate

WildcardName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}[a-z0-9]$")]

_Line = Annotated[str, StringConstraints(min_length=1, max_length=1_000), AfterValidator(check_lines)]

WildcardLines = Annotated[list[_Line], Field(min_length=1, max_length=1_000)]


class TemplateConfig(Strict):
    """A prompt with places for values, `{product}` for example; `{prompt}` is the place of the request's own prompt."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    prompt: str = Field(min_length=1, max_length=8_000)
    negative_prompt: str = Field(default="", max_length=8_000)

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _check_texts(cls, text: str) -> str:
        return check_lines(text)

    def template(self) -> PromptTemplate:
        """Returns the template."""
        return PromptTemplate(self.name, self.prompt, self.negative_prompt)
