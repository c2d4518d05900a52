"""The tokenizer: any text in any script has tokens, and the tokens give the text back."""

from __future__ import annotations

import unicodedata
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from deployments.training.demo.models import TOKENS
from deployments.training.demo.stages.train_text import tokenize
from deployments.training.demo.tokenizer import make_tokenizer


@cache
def tokenizer() -> CLIPTokenizer:
    return make_tokenizer(captions=1500)


def squeezed(text: str) -> str:
    """What of a text the tokenizer keeps: letters in lower case; CLIP's rules move white space about."""
    return "".join(unicodedata.normalize("NFC", text).lower().split())


@pytest.mark.parametrize(
    "text",
    [
        "a red cup on a blue background",
        "Café Größe",
        "кофе с молоком",
        "咖啡杯",
        "كوب قهوة",
        "☕️🦊👩‍👩‍👧",
        "it's 50% (off)!",
    ],
)
def test_text_in_any_script_comes_back(text: str) -> None:
    ids = tokenizer()(text).input_ids
    assert squeezed(tokenizer().decode(ids, skip_special_tokens=True)) == squeezed(text)


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=40).filter(lambda t: "<|" not in t))
def test_no_text_is_unknown(text: str) -> None:
    ids = tokenizer()(text).input_ids
    assert ids[0] == tokenizer().bos_token_id
    assert ids[-1] == tokenizer().eos_token_id
    # The end token is also the unknown token: within a text it would say that something was lost.
    assert tokenizer().eos_token_id not in ids[1:-1]
    assert all(0 <= i < len(tokenizer()) for i in ids)


def test_the_same_arguments_give_the_same_vocabulary() -> None:
    assert make_tokenizer(captions=300).get_vocab() == make_tokenizer(captions=300).get_vocab()


def test_special_tokens_come_last_and_pad_as_in_sd15() -> None:
    size = len(tokenizer())
    ids = tokenize(tokenizer(), ["a red cup", ""])
    assert ids.shape == (2, TOKENS)
    assert (tokenizer().bos_token_id, tokenizer().eos_token_id) == (size - 2, size - 1)
    assert tokenizer().pad_token_id == size - 1
    assert (ids[1, 1:] == size - 1).all()


def test_common_words_are_one_token() -> None:
    assert len(tokenizer()("red cup blue background").input_ids) == 4 + 2
