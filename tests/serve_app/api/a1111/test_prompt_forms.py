"""What A1111 reads in a prompt and this server does not make is refused; what only looks like it stays as it is."""

import time

import pytest

from serve_app.api.a1111.prompt_forms import check_forms

FORMS = [
    "a [cat:dog:0.5] on a mat",
    "[cat:0.5]",
    "[cat::.5]",
    "[cat: dog : 12 ]",
    "[:dog:1e-1]",
    "[(a (red:1.2) cat:1.1):dog:0.5]",
    "[[cat|dog]]",
    "[cat:[dog:bird:0.3]:x]",
    "([cat|dog])",
    "[cat|]",
    "line\n[cat:\ndog:0.5]",
]
WORDS = [
    "a [cat] on a [[mat]]",
    r"\[cat:dog:0.5\]",
    r"[cat\|dog]",
    r"[cat\:0.5]",
    "(cat:1.2)",
    "[(cat:1.2)]",
    "cat|dog",
    "(cat|dog)",
    "[at 12:30 o'clock]",
    "[cat:dog]",
    "[cat:0.5",
    "cat:dog:0.5]",
    "[a (cat:dog:0.5]",
    "sand and SANDY BRANDS",
    "",
]


@pytest.mark.parametrize("text", FORMS)
@pytest.mark.parametrize("combines", [True, False])
def test_words_that_change_are_refused_in_every_form(text: str, combines: bool) -> None:
    with pytest.raises(ValueError, match=r"\[cat"):
        check_forms(text, combines=combines)


@pytest.mark.parametrize("text", WORDS)
def test_what_is_no_form_stays_as_it_is(text: str) -> None:
    assert check_forms(text, combines=True) == text


def test_prompts_are_combined_in_the_prompt_alone() -> None:
    with pytest.raises(ValueError, match="AND"):
        check_forms("a cat AND a dog", combines=True)
    assert check_forms("a cat AND a dog", combines=False) == "a cat AND a dog"


@pytest.mark.parametrize("part", ["[", "(", "[(", "]", ":1", "[a:1" + "(", "|", "\\", "[:" + "1"])
def test_long_texts_take_no_long(part: str) -> None:
    begun = time.process_time()
    check_forms(part * (8_000 // len(part)), combines=True)
    assert time.process_time() - begun < 0.5
