"""Finds what A1111 reads in a prompt besides words and weights, and this server does not make.

    [cat:dog:0.5]  [cat:0.5]  [cat::0.5]   other words from a share of the steps on
    [cat|dog]                              words in turn, step by step
    cat AND dog                            several prompts at once, in the prompt only

`[cat]` weighs less, as it does here; `\\[` is a bracket; and `and` is a word.
"""

import re
from dataclasses import dataclass
from typing import Final

_TOKEN: Final = re.compile(r"\\.|[()\[\]|:]", re.DOTALL)
# As A1111's own number. Each character can match in one way only.
_SHARE: Final = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_AND: Final = re.compile(r"\bAND\b")

_RULE: Final = "which this server does not make; write \\[ for a bracket"


@dataclass(slots=True)
class _Bracket:
    """One that is open: its sign, whether a bar is in it, and where what is behind its last colon begins."""

    sign: str
    has_bar: bool = False
    behind_colon: int | None = None


def check_forms(text: str, *, combines: bool) -> str:
    """Returns `text`, a prompt; `combines` says whether AND has a meaning in it.

    Raises ValueError, which names the form.
    """
    opened: list[_Bracket] = []
    for token in _TOKEN.finditer(text):
        match token[0]:
            case "(" | "[" as sign:
                opened.append(_Bracket(sign))
            case ")" if opened and opened[-1].sign == "(":
                opened.pop()
            case "]" if opened and opened[-1].sign == "[":
                _check_bracket(opened.pop(), text, token.start())
            case "|" if opened:
                opened[-1].has_bar = True
            case ":" if opened:
                opened[-1].behind_colon = token.end()
    if combines and _AND.search(text):
        raise ValueError("combines prompts with AND, which this server does not make; write and, or a comma")
    return text


def _check_bracket(bracket: _Bracket, text: str, end: int) -> None:
    if bracket.has_bar:
        raise ValueError(f"has words in turn, as in [cat|dog], {_RULE}")
    if bracket.behind_colon is not None and _SHARE.fullmatch(text, bracket.behind_colon, end):
        raise ValueError(f"has words that change on the way, as in [cat:dog:0.5], {_RULE}")
