"""Prompt templates: texts with places for a product, colours, an audience. The configuration may add its own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.params import GenerationParams

PLACE: Final = re.compile(r"\{([a-z][a-z0-9_]{0,63})\}")
"""A place that a value goes to."""

PROMPT: Final = "prompt"
"""The place of the request's own prompt. Where a template has none, the prompt comes behind it."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A named prompt with places. `negative_prompt` is for requests that have none."""

    name: str
    prompt: str
    negative_prompt: str = ""

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the values that it needs."""
        return tuple(name for name in dict.fromkeys(PLACE.findall(self.prompt)) if name != PROMPT)


_ROWS: Final = (
    PromptTemplate(
        "product_advertisement",
        "Professional advertisement for {product_name}: high-quality product photography, clean, modern composition, "
        "professional lighting, brand colors: {brand_colors}, target audience: {target_audience}, call-to-action: "
        "{cta_text}, style: {style_description}",
        "blurry, low quality, distorted",
    ),
    PromptTemplate(
        "product_photo",
        "{product_name} on a plain background, {style_description}, product photography, soft light",
        "text, watermark, clutter",
    ),
)

TEMPLATES: Final[Mapping[str, PromptTemplate]] = MappingProxyType({row.name: row for row in _ROWS})


def with_own(templates: Sequence[PromptTemplate]) -> Mapping[str, PromptTemplate]:
    """Returns the built-in templates with `templates` added, or in place of those of the same names."""
    return MappingProxyType({**TEMPLATES, **{template.name: template for template in templates}})


def apply_template(params: GenerationParams, templates: Mapping[str, PromptTemplate]) -> GenerationParams:
    """Returns `params` with the prompt that its template makes. Raises InvalidParameter.

    Values are texts and nothing else: what looks like a place in one stays as it is.
    """
    values = dict(params.template_values)
    if params.template is None:
        if values:
            raise InvalidParameter("template_values", "are for a template, which `template` names")
        return params
    template = _find(params.template, templates)
    _check_names(values, template)
    given = {name: _escape(value) for name, value in values.items()} | {PROMPT: params.prompt}
    filled = PLACE.sub(lambda place: given[place[1]], template.prompt)
    if PROMPT not in PLACE.findall(template.prompt) and params.prompt.strip():
        filled = f"{filled}, {params.prompt}"
    negative = params.negative_prompt or template.negative_prompt
    return params.model_copy(update={"prompt": filled, "negative_prompt": negative})


def _escape(value: str) -> str:
    """Returns a value with what would weigh or part a prompt as plain characters."""
    return re.sub(r"([\\()\[\]])", r"\\\1", value).replace("BREAK", "Break")


def _find(name: str, templates: Mapping[str, PromptTemplate]) -> PromptTemplate:
    if name in templates:
        return templates[name]
    near = get_close_matches(name, templates, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known templates: {', '.join(templates)}"
    raise InvalidParameter("template", f"there is no such template; {hint}")


def _check_names(values: Mapping[str, str], template: PromptTemplate) -> None:
    missing = [name for name in template.places if name not in values]
    if missing:
        raise InvalidParameter("template_values", f"must have {', '.join(missing)} for this template")
    if set(values) - set(template.places):
        raise InvalidParameter("template_values", f"may have {', '.join(template.places)} for this template, no others")
