"""The style presets: one row each. Adding a style is adding a row."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Style:
    """A named look; `text` is what it adds to a prompt."""

    name: str
    text: str


_ROWS = (
    Style("professional", "professional photography, clean composition, business aesthetic"),
    Style("lifestyle", "lifestyle photography, natural lighting, authentic moments"),
    Style("luxury", "luxury photography, premium materials, sophisticated composition"),
    Style("minimalist", "minimalist design, clean lines, simple composition"),
    Style("vintage", "vintage aesthetic, retro styling, classic composition"),
    Style("modern", "modern, contemporary, sleek design"),
)

STYLES: Mapping[str, Style] = MappingProxyType({style.name: style for style in _ROWS})


def add_style(prompt: str, style_preset: str | None) -> str:
    """Appends the style to `prompt`: a preset's text, or else `style_preset` itself, as free text."""
    asked = (style_preset or "").strip()
    if not asked:
        return prompt
    style = STYLES.get(asked.casefold())
    text = style.text if style else asked
    # No comma after an empty prompt, which is allowed.
    return f"{prompt}, {text}" if prompt.strip() else text
