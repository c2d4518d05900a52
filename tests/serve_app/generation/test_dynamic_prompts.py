"""Dynamic prompts: what stands for many texts, drawn the same for the same seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.protocol.errors import InvalidParameter
from serve_app.generation.dynamic_prompts import (
    MAX_DEPTH,
    MAX_OPTIONS,
    count_combinations,
    draw_variants,
    list_combinations,
    parse_dynamic,
)

LISTS = {"colour": ["red", "dark blue"], "shoe_size": ["42"]}


def all_of(text: str) -> list[str]:
    parts = parse_dynamic(text, LISTS)
    found = list_combinations(parts)
    assert len(found) <= count_combinations(parts)
    return found


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("a cup", ["a cup"]),
        ("a {red|blue} cup", ["a red cup", "a blue cup"]),
        ("{a|b}{c|d}", ["ac", "ad", "bc", "bd"]),
        ("{a|{b|c} d}", ["a", "b d", "c d"]),
        ("a {|very } big cup", ["a  big cup", "a very  big cup"]),
        ("__colour__ on __colour__", ["red on red", "red on dark blue", "dark blue on red", "dark blue on dark blue"]),
        ("{__colour__|green}", ["red", "dark blue", "green"]),
        ("size __shoe_size__", ["size 42"]),
        (r"\{a\|b\}", ["{a|b}"]),
        ("a|b", ["a|b"]),
        (r"\(cup\) (red:1.2)", [r"\(cup\) (red:1.2)"]),
        ("snake_case and __Colour__", ["snake_case and __Colour__"]),
        ("{a|a}", ["a"]),
        ("{one}", ["one"]),
    ],
)
def test_a_text_stands_for_all_of_its_combinations(text: str, texts: list[str]) -> None:
    assert all_of(text) == texts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{a|b", "not closed"),
        ("a}", "not opened"),
        ("__color__", "colour"),
        ("{" * (MAX_DEPTH + 1) + "a" + "}" * (MAX_DEPTH + 1), "no deeper"),
        ("{" + "|" * MAX_OPTIONS + "}", "options in all"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        parse_dynamic(text, LISTS)


def test_a_variant_is_the_same_for_its_seed_whatever_the_others_are() -> None:
    parts = parse_dynamic("{a|b|c|d|e} {f|g|h} __colour__", LISTS)
    many = draw_variants(parts, 50, 7)
    assert draw_variants(parts, 3, 7) == many[:3]
    assert draw_variants(parts, 3, 9) == many[2:5]
    assert len(set(many)) > 10
    assert set(many) <= set(list_combinations(parts))


@given(st.text(alphabet="ab{}|\\_", max_size=40))
def test_every_text_is_read_or_refused(text: str) -> None:
    try:
        parts = parse_dynamic(text, LISTS)
    except InvalidParameter:
        return
    if count_combinations(parts) < 1000:
        assert draw_variants(parts, 1, 3)[0] in list_combinations(parts)
