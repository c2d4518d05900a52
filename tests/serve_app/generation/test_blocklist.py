"""Prompts that the blocklist refuses, however they are written, and those that it does not."""

import pickle
import time
import unicodedata
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.protocol.errors import BlockedPrompt
from deployments.engine.protocol.params import GenerationParams
from serve_app.generation.blocklist import BadPattern, Blocklist, BlockRule, compile_pattern, fold
from serve_app.generation.prompts import PromptRules

RULES = Blocklist(
    [
        BlockRule("brands", ("acme", "Blue Bottle", "Ζευς", "Москва", "裸体", "café")),
        BlockRule("codes", patterns=(r"\bx-?\d{3}\b",)),
        BlockRule("gore", ("blood",), negative_prompts=True),
    ]
)


def blocked(prompt: str, **more: object) -> str | None:
    """The field that is refused, and by which rule."""
    params = GenerationParams.model_validate({"prompt": prompt, **more})
    try:
        PromptRules(blocklist=RULES).write(params)
    except BlockedPrompt as error:
        return f"{error.field} {error.rule}"
    return None


@pytest.mark.parametrize(
    "prompt",
    [
        "an acme cup",
        "ACME",
        "an Acme, on a table",
        "acme_cup",
        "a (acme:1.3) cup",
        "a ac(me) cup",
        "a a(c:1.1)me cup",
        r"a \(acme\) cup",
        "[acme]",
        "a {acme} cup",
        "(red)(acme)",
        "a.c.m.e",
        "a c m e",
        "a-c-m-e cup",
        "ac-me",
        "ac\u200bme",
        "ac\u00adme",
        "a\u0301cme",
        "ácmè",
        "ａｃｍｅ",
        "𝐚𝐜𝐦𝐞",
        "ⓐⓒⓜⓔ",
        "аcmе",
        "ΑCΜΕ",
        "асме",
        "ᴀᴄᴍᴇ",
        "a blue   bottle of wine",
        "a blue\nbottle",
        "blue-bottle",
        "bl(ue bo)ttle",
        "ΖΕΥΣ",
        "ένας Ζεύς",
        "МОСКВА",
        "一个裸体的人",
        "裸 体",
        "CAFE\u0301",
        "cafe",
    ],
)
def test_it_does_not_help_to_hide_a_word(prompt: str) -> None:
    assert blocked(prompt) == "prompt brands"


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a red cup on a blue background",
        "acmeology",
        "pacme",
        "a bottle, blue",
        "blue (glass) bottle",
        "a c and an m",
        "一个人体",
        "x1234 and xx-123",
        "bloodless",
    ],
)
def test_words_are_whole_and_phrases_in_order(prompt: str) -> None:
    assert blocked(prompt) is None


def test_patterns_see_the_text_as_words_do() -> None:
    for prompt in ("an X-123", "x123", "ｘ123", "х-123", "(x:1.2)-123", "x\u200b-123"):
        assert blocked(prompt) == "prompt codes", prompt


def test_a_negative_prompt_may_name_what_shall_not_be_there_unless_the_rule_says_so() -> None:
    assert blocked("a cup", negative_prompt="acme, x-123") is None
    assert blocked("a cup", negative_prompt="(blood:1.2)") == "negative_prompt gore"


def test_the_field_is_named_that_has_it_and_what_comes_together_is_the_prompts() -> None:
    product = {"product_name": "acme", "style_description": "x"}
    assert blocked("", template="product_photo", template_values=product) == "template_values brands"
    assert blocked("a cup", style_preset="acme") == "style_preset brands"
    assert blocked("blue", style_preset="bottle") == "prompt brands"
    values = {"product_name": "blue", "style_description": "bottle"}
    assert blocked("", template="product_photo", template_values=values) is None
    assert blocked("a blue", style_preset="bottle x123") == "style_preset codes"


def test_what_a_template_puts_together_is_read_as_the_model_will_see_it() -> None:
    rules = Blocklist([BlockRule("r", ("cup on a plain",))])
    params = GenerationParams(
        prompt="", template="product_photo", template_values=(("product_name", "cup"), ("style_description", "x"))
    )
    with pytest.raises(BlockedPrompt) as caught:
        PromptRules(blocklist=rules).write(params)
    assert caught.value.field == "prompt"


def test_the_message_names_the_rule_and_nothing_of_it() -> None:
    with pytest.raises(BlockedPrompt) as caught:
        PromptRules(blocklist=RULES).write(GenerationParams(prompt="an acme cup"))
    assert "brands" in caught.value.message
    assert "acme" not in caught.value.message
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.field, again.rule, again.message) == ("prompt", "brands", caught.value.message)


def test_refusals_are_counted_by_rule() -> None:
    rules = Blocklist([BlockRule("a", ("one",)), BlockRule("b", ("two",))])
    for prompt in ("one", "three", "one"):
        params = GenerationParams(prompt=prompt)
        with suppress(BlockedPrompt):
            rules.check(params, params)
    assert rules.counts == {"a": 2, "b": 0}


@given(st.text(max_size=200))
def test_any_text_can_be_read_and_a_word_is_found_in_it(text: str) -> None:
    search = Blocklist([BlockRule("r", ("acme",))])
    params = GenerationParams.model_construct(prompt=f"{text} acme {text}", template_values=())
    with pytest.raises(BlockedPrompt):
        search.check(params, params)


@given(st.text(max_size=50))
def test_folding_is_stable(text: str) -> None:
    for folded in fold(text):
        assert all(unicodedata.category(letter) not in ("Mn", "Me", "Cf") for letter in folded)
        assert folded in fold(folded)


@pytest.mark.parametrize("wrong", ["(", "a(?=b)", r"(a)\1", "a*", "", "[", "x" * 501, "(a{1000}){1000}"])
def test_what_is_no_pattern_or_matches_everything_is_refused(wrong: str) -> None:
    with pytest.raises(BadPattern):
        compile_pattern(wrong)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(a|a?)+b", r"(.*a){20}$", "(x+x+)+y"])
@pytest.mark.parametrize(
    "text", ["a" * 7_999 + "!", "x" * 8_000, "_" * 8_000, "(" * 8_000, "a:1.1" * 1_600, ". " * 4_000]
)
def test_no_pattern_and_no_prompt_takes_long(pattern: str, text: str) -> None:
    """A backtracking engine would need longer than the universe is old for some of these."""
    search = Blocklist([BlockRule("r", ("acme", "blue bottle"), (pattern,))])
    params = GenerationParams(prompt=text)
    begun = time.process_time()
    with suppress(BlockedPrompt):
        search.check(params, params)
    assert time.process_time() - begun < 5
