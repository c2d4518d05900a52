"""Makes CLIP's own tokenizer, whose merges come with the code: single-file checkpoints have none.

Its vocabulary follows from the merges: the bytes, the bytes at a word's end, the result of each merge, and two special
tokens.
"""

from functools import cache
from pathlib import Path
from typing import Final

from transformers import CLIPTokenizer

TOKENS: Final = 77
START: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"
_MERGES: Final = Path(__file__).parent / "clip_vocabulary" / "merges.txt"


def build_clip_tokenizer(pad_token: str) -> CLIPTokenizer:
    """Makes a new tokenizer with CLIP's 49,408 tokens, which pads prompts up to 77 with `pad_token`."""
    vocabulary, merges = _read_vocabulary()
    return CLIPTokenizer(
        vocab=dict(vocabulary),
        merges=list(merges),
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=pad_token,
        model_max_length=TOKENS,
    )


@cache
def _read_vocabulary() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    lines = _MERGES.read_text(encoding="utf-8").splitlines()[1:]
    merges = tuple((first, second) for first, second in (line.split(" ") for line in lines))
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def _byte_letters() -> list[str]:
    """Returns the 256 characters that stand for bytes, in CLIP's order: the printable ones first (Radford et al.,
    2019).
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in shown] + [chr(256 + index) for index in range(256 - len(shown))]
