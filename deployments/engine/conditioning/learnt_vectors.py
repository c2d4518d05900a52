"""Reads the vectors of learnt embeddings, and puts them where text encoders look up their tokens."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Final

import torch
from cachetools import LRUCache
from safetensors.torch import load
from torch import Tensor, nn

from deployments.engine.conditioning.embedding_layout import find_vectors
from deployments.engine.protocol.errors import InvalidParameter, ModelLoadError
from deployments.engine.protocol.files.embeddings import EmbeddingFile

log = logging.getLogger(__name__)

KEPT: Final = 256
"""The embeddings whose vectors are kept, the latest used ones: 75 vectors of SD2.1 are 300 kB."""


Vectors = tuple[Tensor, ...]
"""The vectors of an embedding, [vectors, width] for each text encoder."""


class LearntVectors:
    """The vectors of embeddings for a model's text encoders. May be used from any thread."""

    def __init__(self, text_encoders: Sequence[nn.Module], device: torch.device) -> None:
        self._tables = [_find_token_embedding(each) for each in text_encoders]
        self._device = device
        self._kept: LRUCache[str, Vectors] = LRUCache(KEPT)
        self._lock = Lock()

    def check_widths(self, file: EmbeddingFile, field: str) -> None:
        """Raises InvalidParameter for `field` if an embedding is not for these text encoders."""
        widths = tuple(int(table.embedding_dim) for table in self._tables)
        if len(file.widths) != len(widths):
            rule = f"is for {_encoders(len(file.widths))}, and this model has {len(widths)}"
        elif file.widths != widths:
            has, takes = (" and ".join(map(str, each)) for each in (file.widths, widths))
            whose = "text encoder takes" if len(widths) == 1 else "text encoders take"
            rule = f"has vectors of width {has}, and this model's {whose} {takes}"
        else:
            return
        raise InvalidParameter(field, f"names the embedding {file.name!r}, which {rule}")

    def of(self, file: EmbeddingFile) -> Vectors:
        """Returns the vectors of `file`, in the text encoders' precision. Raises ModelLoadError if it cannot be read,
        or is not what it was.
        """
        with self._lock:
            found = self._kept.get(file.digest)
        if found is None:
            pairs = zip(read_vectors(file), self._tables, strict=True)
            found = tuple(vectors.to(self._device, table.weight.dtype) for vectors, table in pairs)
            with self._lock:
                self._kept[file.digest] = found
        return found

    @contextmanager
    def put_in(self, vectors: Mapping[int, Sequence[Tensor]]) -> Iterator[None]:
        """Gives tokens at these places of a text of [1, tokens] other vectors while the context is open: each one for
        every text encoder.
        """
        with ExitStack() as hooks:
            for number, table in enumerate(self._tables if vectors else ()):
                own = {place: each[number] for place, each in vectors.items()}
                hooks.callback(table.register_forward_hook(_replacing(own)).remove)
            yield


def _replacing(vectors: Mapping[int, Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def replace(_module: nn.Module, _given: Any, looked_up: Tensor) -> Tensor:
        changed = looked_up.clone()
        for place, vector in vectors.items():
            changed[0, place] = vector
        return changed

    return replace


def _encoders(count: int) -> str:
    return "one text encoder" if count == 1 else "two text encoders"


def read_vectors(file: EmbeddingFile) -> Vectors:
    """Returns the vectors of `file` in fp32. Raises ModelLoadError."""
    title, path = f"embedding {file.name!r}", Path(file.path)
    keys = find_vectors(title, path).keys
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.digest:
        raise ModelLoadError(f"{title}: {path.name} is not the file that the ingress has; give all nodes the same one")
    state = load(content)
    found = tuple(state[key].float().reshape(-1, state[key].shape[-1]) for key in keys)
    if not all(bool(torch.isfinite(vectors).all()) for vectors in found):
        raise ModelLoadError(f"{title}: its vectors are not finite; bring it again from where it came")
    return found


def _find_token_embedding(text_encoder: nn.Module) -> Any:
    # By name, because transformers moved it: once under `text_model`, now in the encoder's own embeddings.
    modules = text_encoder.named_modules()
    return next(each for name, each in modules if name.endswith("token_embedding") and isinstance(each, nn.Embedding))
