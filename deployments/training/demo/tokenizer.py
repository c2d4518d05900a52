"""A CLIP tokenizer of our own: byte-level BPE (Sennrich et al. 2016) learnt from the demo world's captions.

Every byte has a token, at the end of a word and within one, so any text in any script can be encoded. The two special
tokens come last, and padding is the end token, as in SD1.5.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from typing import Final

from transformers import CLIPTokenizer

from deployments.training.demo.models import TOKENS
from deployments.training.demo.world.captions import sample

MERGES: Final = 900
_START, _END = "<|startoftext|>", "<|endoftext|>"
Pair = tuple[str, str]


def make_tokenizer(captions: int = 6000, seed: int = 0) -> CLIPTokenizer:
    """The tokenizer; the same arguments give the same vocabulary."""
    rng = random.Random(seed)
    counts = Counter(word for _ in range(captions) for word in sample(rng)[1].text.lower().replace(",", " ").split())
    merges = learn_merges({word: n for word, n in counts.items() if n > 2}, MERGES)
    symbols = byte_symbols()
    tokens = [*symbols, *(f"{s}</w>" for s in symbols), *("".join(pair) for pair in merges), _START, _END]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))},
        merges=merges,
        model_max_length=TOKENS,
        unk_token=_END,
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
    )


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in its order (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def learn_merges(counts: dict[str, int], limit: int) -> list[Pair]:
    """The most frequent neighbouring pairs, merged one after another, from words and how often they occur."""
    split = {word: [*word[:-1], f"{word[-1]}</w>"] for word in counts if word.isascii()}
    merges: list[Pair] = []
    while len(merges) < limit:
        pairs: Counter[Pair] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = {word: _merge(parts, best) for word, parts in split.items()}
    return merges


def _merge(parts: list[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
