"""The laws of the attention syntax."""

import time
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.conditioning.prompt_syntax import Fragment, parse_weighted
from deployments.engine.protocol.errors import InvalidParameter

PLAIN = st.text(st.characters(exclude_characters="()[]\\:", exclude_categories=["Cs"]), min_size=1)
SYNTAX = st.lists(
    st.sampled_from(["(", ")", "[", "]", "\\", ":", "1.2", "-1", ".", " ", "word", "BREAK", "é", "\0", ":1.5)", ":0)"])
).map("".join)


def weights(prompt: str) -> dict[str, float]:
    """The weight of each fragment, by its text without the spaces around it."""
    return {fragment.text.strip(): fragment.weight for fragment in parse_weighted(prompt)}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a (red) cup", {"a": 1.0, "red": 1.1, "cup": 1.0}),
        ("a ((red)) cup", {"a": 1.0, "red": 1.21, "cup": 1.0}),
        ("a (red:1.25) cup", {"a": 1.0, "red": 1.25, "cup": 1.0}),
        ("a (red: .5 ) cup", {"a": 1.0, "red": 0.5, "cup": 1.0}),
        ("a [red] cup", {"a": 1.0, "red": 1 / 1.1, "cup": 1.0}),
        ("(a (red:2):1.5)", {"a": 1.5, "red": 3.0}),
        ("(a [red]:1.5) cup", {"a": 1.5, "red": 1.5 / 1.1, "cup": 1.0}),
        ("(a [red) cup] x", {"a": 1.1, "red": 1.0, "cup": 1 / 1.1, "x": 1.0}),
        ("(a:0)b", {"a": 0.0, "b": 1.0}),
    ],
)
def test_brackets_weigh_what_they_hold(prompt: str, expected: dict[str, float]) -> None:
    assert weights(prompt) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a (red", {"a": 1.0, "red": 1.1}),
        ("a [[red", {"a": 1.0, "red": 1 / 1.21}),
        ("a (red [cup:2)", {"a": 1.0, "red": 2.0, "cup": 2 / 1.1}),
        ("a) red]", {"a) red]": 1.0}),
        ("a:1.5)", {"a:1.5)": 1.0}),
        ("(a:1.2.3)", {"a:1.2.3": 1.1}),
        ("(a:b)", {"a:b": 1.1}),
        ("()", {}),
        ("", {}),
    ],
)
def test_unbalanced_brackets_are_tolerated(prompt: str, expected: dict[str, float]) -> None:
    assert weights(prompt) == pytest.approx(expected)


def test_escaped_brackets_are_text() -> None:
    assert parse_weighted(r"a \(red\) \[cup\] \\ C:\dir") == (Fragment(r"a (red) [cup] \ C:\dir"),)


def test_a_weight_of_one_is_no_weight() -> None:
    assert parse_weighted("a (red:1.0) [(cup)]") == (Fragment("a red cup"),)


@given(PLAIN.filter(lambda text: "BREAK" not in text))
def test_plain_text_comes_back_as_it_is(prompt: str) -> None:
    assert parse_weighted(prompt) == (Fragment(prompt, 1.0),)


@given(SYNTAX | st.text())
def test_every_text_is_parsed_or_refused_cleanly(prompt: str) -> None:
    try:
        fragments = parse_weighted(prompt)
    except InvalidParameter:
        return
    assert all(0 <= fragment.weight <= 10 for fragment in fragments)
    assert all(fragment.text or fragment.new_chunk for fragment in fragments)
    assert all(one.weight != other.weight or other.new_chunk for one, other in pairwise(fragments))


@given(PLAIN.filter(lambda text: "BREAK" not in text), st.floats(0, 10))
def test_any_weight_in_range_is_kept(word: str, weight: float) -> None:
    assert parse_weighted(f"({word}:{weight:.6f})") == (Fragment(word, float(f"{weight:.6f}")),)


@pytest.mark.parametrize("prompt", ["(a:10.1)", "(a:-1)", "((a:5):5)", "(" * 40 + "a", f"(a:{'9' * 400})"])
def test_a_weight_out_of_range_is_refused_with_its_field(prompt: str) -> None:
    with pytest.raises(InvalidParameter, match="between 0 and 10") as caught:
        parse_weighted(prompt, "negative_prompt")
    assert caught.value.field == "negative_prompt"


def test_an_infinite_weight_times_zero_is_refused() -> None:
    with pytest.raises(InvalidParameter):
        parse_weighted(f"((a:{'9' * 400}):0)")


@pytest.mark.parametrize(
    "prompt",
    [
        "(" * 10_000 + "a" + ")" * 10_000,
        "[" * 10_000 + "a" + "]" * 10_000,
        "(" * 10_000 + "a" + ":1.0)" * 10_000,
        "a(b" * 10_000,
        "a" + " " * 100_000 + "b",
        ":" * 10_000,
        ":1" * 10_000,
        ":" + " " * 100_000,
        "(a:" + "1" * 100_000,
        "\\" * 10_001,
        " BREAK " * 10_000,
    ],
)
def test_hostile_prompts_take_linear_time(prompt: str) -> None:
    start = time.perf_counter()
    with suppress(InvalidParameter):
        parse_weighted(prompt)
    assert time.perf_counter() - start < 1.0


def test_equally_deep_brackets_cancel() -> None:
    assert parse_weighted("(" * 10_000 + "[" * 10_000 + "a") == (Fragment("a"),)


def test_break_starts_a_chunk_and_takes_its_spaces_with_it() -> None:
    assert parse_weighted("a cup  BREAK  a (cat:1.2) BREAK(dog:1.2)") == (
        Fragment("a cup"),
        Fragment("a ", new_chunk=True),
        Fragment("cat", 1.2),
        Fragment("", new_chunk=True),
        Fragment("dog", 1.2),
    )


def test_break_is_an_upper_case_word() -> None:
    assert parse_weighted("a break, BREAKFAST") == (Fragment("a break, BREAKFAST"),)
