"""Tokenizes prompts: a caller's words, and the tokens that the model has learnt besides."""

import json
from threading import Lock
from typing import Any

from diffusers.loaders import TextualInversionLoaderMixin
from tokenizers import Tokenizer

from deployments.engine.checkpoints.vocabulary import added_tokens_of


class TextTokenizer:
    """Tokenizes texts with a CLIP tokenizer of transformers'.

    Start, end, padding and unknown in a text are the characters that they are written with, never the tokens. All
    other tokens that were added to CLIP's are learnt ones, whether the tokenizer calls them special or not. May be used
    from any thread.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._learnt = bool(added_tokens_of(tokenizer))
        self._plain = _build_plain_tokenizer(tokenizer)
        # transformers' own tokenizers change their settings with each call.
        self._lock = Lock()

    def __call__(self, text: str) -> list[int]:
        """Returns the ids of `text`, without start and end."""
        return list(self._plain.encode(self._spell_out(text), add_special_tokens=False).ids)

    def _spell_out(self, text: str) -> str:
        """Expands concepts learnt as several tokens (`<cat>`, `<cat>_1`, ...) to all of them, as diffusers does."""
        if not self._learnt:
            return text
        with self._lock:
            spelt: str = TextualInversionLoaderMixin().maybe_convert_prompt(text, self._tokenizer)
        return spelt


def _build_plain_tokenizer(tokenizer: Any) -> Tokenizer:
    learnt = added_tokens_of(tokenizer)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in described["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in learnt
    plain = Tokenizer.from_str(json.dumps(described))
    plain.encode_special_tokens = True  # as text, that is
    plain.no_truncation()
    plain.no_padding()
    return plain
