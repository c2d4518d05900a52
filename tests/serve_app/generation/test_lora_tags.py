"""A1111's tags are read and written as A1111 does, and what they cannot mean here is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.protocol.settings import LoraSettings
from serve_app.generation.lora_tags import has_tags, join_tags, split_tags


@pytest.mark.parametrize(
    ("prompt", "rest", "loras"),
    [
        ("a cup", "a cup", []),
        ("a cup <lora:coffee:0.8>", "a cup ", [("coffee", 0.8)]),
        ("<LORA:coffee> a <lyco:x y:-.5>", " a ", [("coffee", 1.0), ("x y", -0.5)]),
        ("<lora:a:1:1>", "", [("a", 1.0)]),
        ("<lora:a:te=0.5:unet=0.5>", "", [("a", 0.5)]),
        ("<lora:a:1e-05>", "", [("a", 1e-05)]),
        ("a <b:c> d < lora", "a <b:c> d < lora", []),
    ],
)
def test_tags_are_taken_out_of_the_prompt(prompt: str, rest: str, loras: list[tuple[str, float]]) -> None:
    found = split_tags(prompt)
    assert found.prompt == rest
    assert [(each.name, each.scale) for each in found.loras] == loras


@pytest.mark.parametrize(
    ("prompt", "rule"),
    [
        ("<lora:a", "does not end"),
        ("<lora:a:1 <lora:b:1>", "does not end"),
        ("<lora:a:0.5:1>", "two weights"),
        ("<lora:a:unet=0.5>", "two weights"),
        ("<lora:a:1:1:1>", "more than a name"),
        ("<lora:a:1:lbw=OUTALL>", "more than a name"),
        ("<lora:a:much>", "more than a name"),
        ("<lora:a:9>", "from -4 to 4"),
        ("<lora:a:1e999>", "from -4 to 4"),
        ("<lora:../a:1>", "a name on this server"),
        ("<lora::1>", "a name on this server"),
        ("<hypernet:a:1>", "hypernetwork"),
        ("<lora:a:1><lora:a:1>", "twice"),
        ("".join(f"<lora:{i}:1>" for i in range(9)), "at most 8"),
    ],
)
def test_what_a_tag_cannot_mean_is_refused(prompt: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        split_tags(prompt)


@given(st.floats(-4, 4, allow_nan=False))
def test_what_is_written_is_read_back_exactly(scale: float) -> None:
    loras = (LoraSettings(name="coffee beans", scale=scale), LoraSettings(name="\u5496\u5561"))
    written = join_tags("a cup", loras)
    assert has_tags(written)
    assert split_tags(written).loras == loras
    assert split_tags(written).prompt.strip() == "a cup"
