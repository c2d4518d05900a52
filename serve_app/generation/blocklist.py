"""The words and patterns that prompts may not have, and how a prompt is read so that hiding them does not help.

Texts are compared in one form: compatibility characters as plain ones, without case, accents and characters that nobody
sees, and letters of other scripts that look like Latin ones as those. What only weighs or parts a prompt (brackets,
weights) is taken out, once as a gap and once as nothing.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from threading import Lock
from typing import Any, Final

import re2

from deployments.engine.protocol.errors import BlockedPrompt
from deployments.engine.protocol.params import GenerationParams

MAX_PATTERN: Final = 500
PATTERN_MEMORY: Final = 2**20
"""The most bytes of a compiled pattern: one that needs more is refused with the configuration."""


def _table(pairs: str) -> Mapping[int, str]:
    return {ord(pair[0]): pair[1] for pair in pairs.split()}


_LOOKALIKES: Final = _table(
    "αa βb εe ιi κk οo ρp τt χx аa вb еe кk мm нh оo рp сc тt уy хx ьb ѕs іi јj һh ӏl ԁd ԍg ԛq ԝw үy օo սu ոn հh ցg քp "
    "ⲟo ɑa ɡg ıi øo łl đd ħh ŧt ƒf ᴀa ʙb ᴄc ᴅd ᴇe ꜰf ɢg ʜh ɪi ᴊj ᴋk ʟl ᴍm ɴn ᴏo ᴘp ʀr ꜱs ᴛt ᴜu ᴠv ᴡw ʏy ᴢz"
)
# Greek letters that look like one Latin letter as capitals, and like another one as small letters.
_AS_CAPITALS: Final = {**_LOOKALIKES, **_table("ηh νn υy ζz μm")}
_AS_SMALL: Final = {**_LOOKALIKES, **_table("ηn νv υu γy ωw μu")}
# Scripts that put no spaces between words, and Hangul, whose words take endings: there a word is looked for anywhere.
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ufaff\U00020000-\U0003ffff]"
)
_INVISIBLE: Final = frozenset(("Mn", "Me", "Cf"))
_SYNTAX: Final = re.compile(r"\\(?=[()\[\]{}\\])|:\s*[+-]?[0-9.]+\s*(?=\))|[()\[\]{}]")
_INSIDE: Final = re.compile(r"(?<=[^\W_])(?:_|[^\w\s])+(?=[^\W_])")
_WORD: Final = re.compile(r"[^\W_]+")
# How many letters one by one make a word.
_SPELT: Final = 3


class BadPattern(ValueError):
    """A pattern that is none, or too large."""


@dataclass(frozen=True, slots=True)
class BlockRule:
    """`words` are words and phrases, `patterns` regular expressions of RE2, which need linear time whatever they are.

    Negative prompts say what an image shall not show, so they are looked at only if `negative_prompts` says so.
    Callers are told the rule's `name`, and nothing else of it.
    """

    name: str
    words: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    negative_prompts: bool = False


class Blocklist:
    """Refuses prompts by `rules`, and counts the refusals by rule. May be used from any thread.

    Raises BadPattern.
    """

    def __init__(self, rules: Sequence[BlockRule] = ()) -> None:
        self._in_prompts = _Search(rules)
        self._in_negatives = _Search([rule for rule in rules if rule.negative_prompts])
        self._lock = Lock()
        self.counts: Counter[str] = Counter({rule.name: 0 for rule in rules})

    def check(self, asked: GenerationParams, styled: GenerationParams) -> None:
        """Raises BlockedPrompt, which names the field, for prompts that break a rule.

        `styled` is `asked` with its template and style applied, as the model will see it.
        """
        self.check_texts(_texts_of(asked, styled))

    def check_texts(self, texts: Iterable[tuple[str, str]]) -> None:
        """Raises BlockedPrompt for the first of `texts`, each with its field, that breaks a rule."""
        if not self.counts:
            return
        for field, text in texts:
            search = self._in_negatives if field == "negative_prompt" else self._in_prompts
            if (rule := search.find_rule(text)) is not None:
                with self._lock:
                    self.counts[rule] += 1
                raise BlockedPrompt(field, rule)


class _Search:
    """Looks for everything that `rules` refuse in one pass over a text's words."""

    def __init__(self, rules: Sequence[BlockRule]) -> None:
        self._phrases: dict[tuple[str, ...], str] = {}
        self._anywhere: dict[str, str] = {}
        for rule in rules:
            for folded in (folded for word in rule.words for folded in fold(word)):
                phrase = tuple(_WORD.findall(folded))
                if _UNSPACED.search(folded):
                    self._anywhere.setdefault("".join(phrase), rule.name)
                elif phrase:
                    self._phrases.setdefault(phrase, rule.name)
        self._lengths = sorted({len(phrase) for phrase in self._phrases})
        self._patterns = [(compile_pattern(pattern), rule.name) for rule in rules for pattern in rule.patterns]

    def find_rule(self, text: str) -> str | None:
        """Returns the name of a rule that `text` breaks, if it breaks one."""
        if not text or not (self._phrases or self._anywhere or self._patterns):
            return None
        texts = tuple(dict.fromkeys(each for folded in fold(text) for each in _without_syntax(folded)))
        words = [tuple(_WORD.findall(each)) for each in texts]
        return next(
            chain(
                *(self._phrases_in(each) for each in dict.fromkeys((*words, *map(_join_letters, words)))),
                (rule for each in words for word, rule in self._anywhere.items() if word in "".join(each)),
                (rule for pattern, rule in self._patterns if any(pattern.search(each) for each in texts)),
            ),
            None,
        )

    def _phrases_in(self, words: tuple[str, ...]) -> Iterator[str]:
        for length in self._lengths:
            for start in range(len(words) - length + 1):
                if (rule := self._phrases.get(words[start : start + length])) is not None:
                    yield rule


def fold(text: str) -> tuple[str, ...]:
    """Returns `text` in the one or two forms in which it is compared: Unicode's NFKD of its NFKC, with case folding."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    seen = "".join(letter for letter in plain if unicodedata.category(letter) not in _INVISIBLE)
    return tuple(dict.fromkeys((seen.translate(_AS_CAPITALS), seen.translate(_AS_SMALL))))


def _without_syntax(text: str) -> tuple[str, str, str]:
    """Returns a text without what weighs and parts it: with gaps there, without, and without any inside words."""
    plain = _SYNTAX.sub("", text)
    return _SYNTAX.sub(" ", text), plain, _INSIDE.sub("", plain)


def compile_pattern(pattern: str) -> Any:
    """Compiles a regular expression of RE2's, which ignores case. Raises BadPattern."""
    if len(pattern) > MAX_PATTERN:
        raise BadPattern(f"is longer than {MAX_PATTERN} characters")
    options = re2.Options()
    options.case_sensitive = False
    options.max_mem = PATTERN_MEMORY
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        raise BadPattern(f"is no pattern of RE2: {_decode(reason)}") from None
    if compiled.search("") is not None:
        raise BadPattern("matches every text")
    return compiled


def _decode(reason: object) -> str:
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)


def _texts_of(asked: GenerationParams, styled: GenerationParams) -> Iterator[tuple[str, str]]:
    """Yields what a caller wrote, with its field, and then what becomes of it."""
    yield "prompt", asked.prompt
    yield "style_preset", asked.style_preset or ""
    for _, value in asked.template_values:
        yield "template_values", value
    if styled.prompt != asked.prompt:
        yield "prompt", styled.prompt
    yield "negative_prompt", asked.negative_prompt
    if styled.negative_prompt != asked.negative_prompt:
        yield "negative_prompt", styled.negative_prompt


def _join_letters(words: Iterable[str]) -> tuple[str, ...]:
    """Returns `words`, with those that were spelt letter by letter as one."""
    joined: list[str] = []
    for is_letter, run in groupby(words, lambda word: len(word) == 1):
        letters = list(run)
        joined.extend(["".join(letters)] if is_letter and len(letters) >= _SPELT else letters)
    return tuple(joined)


NOTHING_BLOCKED: Final = Blocklist()
