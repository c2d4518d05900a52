"""Loads a model's tokenizer, and checks that it fits the text encoder."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from transformers import CLIPTokenizer

from deployments.engine.checkpoints.file_integrity import check_intact, read_config
from deployments.engine.protocol.errors import ModelLoadError

_CLASSES: Final = ("CLIPTokenizer", "CLIPTokenizerFast")
_WORD_END: Final = "</w>"
_CONFIG: Final = "tokenizer_config.json"
_FILES: Final = (
    "tokenizer.json",
    "vocab.json",
    _CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
)
_FEWEST: Final = 0.9
# By convention: special tokens, and ids reserved for some. No merge makes them.
_RESERVED: Final = re.compile(r"<[^<>]+>")
_SPECIAL: Final = ("bos", "eos", "pad", "unk")
_PROBES: Final = ("", "a", "a picture " * 100)


def load_tokenizer(title: str, folder: Path) -> Any:
    """Loads the CLIP tokenizer in `folder`.

    Raises ModelLoadError, which begins with `title`, if files are incomplete.
    """
    have = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "tokenizer.json" not in have:
        missing = sorted({"vocab.json", "merges.txt"} - have)
        if missing:
            raise ModelLoadError(
                f"{title} has neither tokenizer.json nor {' and '.join(missing)}; bring tokenizer.json, or vocab.json "
                "and merges.txt"
            )
        check_intact(title, folder / "merges.txt")
    configs = {name: read_config(title, folder / name) for name in _FILES if name in have}
    kind = configs.get(_CONFIG, {}).get("tokenizer_class") or _CLASSES[0]
    if kind not in _CLASSES:
        raise ModelLoadError(f"{title} is a {kind} by its tokenizer_config.json, and served is a {_CLASSES[0]}")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelLoadError(
            f"{title} could not be loaded: its files do not make a {_CLASSES[0]}; bring them again from where it came"
        ) from error


def check_vocabulary(title: str, tokenizer: Any, config: Any) -> None:
    """Raises ModelLoadError if prompts would mean something else, or nothing, to the text encoder of `config`."""
    for name in _SPECIAL:
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise ModelLoadError(f"{title} has no {name}_token; name it in its tokenizer_config.json")
    known, rows = dict(tokenizer.get_vocab()), int(config.vocab_size)
    beyond = [token for token, index in known.items() if index >= rows]
    if beyond:
        raise ModelLoadError(
            f"{title} does not fit the text encoder: it has {len(beyond)} tokens with ids of {rows} and more, and the "
            f"text encoder's `vocab_size` is {rows}; bring the two that belong together"
        )
    if len(known) < _FEWEST * rows:
        raise ModelLoadError(
            f"{title} does not fit the text encoder: it knows {len(known)} tokens, and the text encoder's `vocab_size` "
            f"is {rows}; bring the two that belong together"
        )
    _check_words(title, tokenizer)
    _check_length(title, tokenizer, int(config.max_position_embeddings))
    _check_wrapping(title, tokenizer)


def check_same_words(title: str, second: Any, first: Any) -> None:
    """Raises ModelLoadError if two tokenizers of one model would cut its prompts differently."""
    if second.get_vocab() != first.get_vocab() or second.model_max_length != first.model_max_length:
        raise ModelLoadError(
            f"{title} has other words than the model's tokenizer, or another `model_max_length`: the two would cut "
            "prompts differently; bring the two that belong together"
        )


def added_tokens_of(tokenizer: Any) -> Mapping[str, int]:
    """Returns the tokens that textual inversion or DreamBooth added to CLIP's: not start, end, padding and unknown."""
    special = {getattr(tokenizer, f"{name}_token") for name in _SPECIAL}
    return {token: index for token, index in tokenizer.get_added_vocab().items() if token not in special}


def _check_words(title: str, tokenizer: Any) -> None:
    """Checks that every byte can be spelt, and every word built from letters: otherwise texts become unknown, or
    letters.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words, merges = model["vocab"], model["merges"]
    letters = {word for word in words if len(word.removesuffix(_WORD_END)) == 1}
    if len(letters) < 2 * 256:
        raise ModelLoadError(
            f"{title} does not know every letter ({len(letters)} of 512): its vocabulary is empty or cut off; bring it "
            "again from where it came"
        )
    made = {"".join(pair) if isinstance(pair, list) else pair.replace(" ", "") for pair in merges}
    lost = set(words) - letters - made - set(tokenizer.get_added_vocab())
    lost = {word for word in lost if not _RESERVED.fullmatch(word)}
    if lost:
        raise ModelLoadError(
            f"{title} has no merges for {len(lost)} of its words: merges.txt or tokenizer.json is empty or cut off; "
            "bring it again from where it came"
        )


def _check_length(title: str, tokenizer: Any, positions: int) -> None:
    longest = tokenizer.model_max_length
    if not 3 <= longest <= positions:
        raise ModelLoadError(
            f"{title}: `model_max_length` is {longest:g} by its tokenizer_config.json (left out means without an end), "
            f"and must be between 3 and the text encoder's `max_position_embeddings`, {positions}"
        )


def _check_wrapping(title: str, tokenizer: Any) -> None:
    """Checks that the engine's wrapping of a prompt, done by hand, equals the tokenizer's own, which diffusers uses."""
    longest = tokenizer.model_max_length
    for text in _PROBES:
        theirs = tokenizer(text, padding="max_length", max_length=longest, truncation=True).input_ids
        own = tokenizer(text, add_special_tokens=False, verbose=False).input_ids[: longest - 2]
        padding = [tokenizer.pad_token_id] * (longest - 2 - len(own))
        if theirs != [tokenizer.bos_token_id, *own, tokenizer.eos_token_id, *padding]:
            raise ModelLoadError(
                f"{title} wraps a prompt in something else than start, end and padding behind it; set `padding_side` "
                "to right in its tokenizer_config.json, and take CLIP's own tokenizer.json"
            )
