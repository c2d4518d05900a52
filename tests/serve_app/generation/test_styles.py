"""The style presets."""

import pytest

from serve_app.generation.styles import STYLES, add_style

GUIDE = {
    "professional": "professional photography, clean composition, business aesthetic",
    "lifestyle": "lifestyle photography, natural lighting, authentic moments",
    "luxury": "luxury photography, premium materials, sophisticated composition",
    "minimalist": "minimalist design, clean lines, simple composition",
    "vintage": "vintage aesthetic, retro styling, classic composition",
    "modern": "modern, contemporary, sleek design",
}


def test_the_presets_are_the_guides_word_for_word() -> None:
    assert {name: style.text for name, style in STYLES.items()} == GUIDE


@pytest.mark.parametrize("name", GUIDE)
def test_a_name_and_its_text_are_the_same_request(name: str) -> None:
    """The guide passes the text itself as `style_preset`; others pass the name."""
    assert add_style("a cup", name) == add_style("a cup", GUIDE[name]) == add_style("a cup", f" {name.title()} ")


@pytest.mark.parametrize("nothing", [None, "", " \n"])
def test_no_style_leaves_the_prompt_alone(nothing: str | None) -> None:
    assert add_style("a cup", nothing) == "a cup"


def test_no_caller_can_add_a_style() -> None:
    with pytest.raises(TypeError):
        STYLES["mine"] = STYLES["modern"]  # type: ignore[index]
