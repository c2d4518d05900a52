"""Reads the vectors of learnt embeddings, and puts them where a text encoder looks up its tokens."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


class LearntVectors:
    """The vectors of embeddings for one text encoder. May be used from any thread."""

    def __init__(self, text_encoder: nn.Module, device: torch.device) -> None:
        self._table = _find_token_embedding(text_encoder)
        self._device = device
        self._kept: LRUCache[str, Tensor] = LRUCache(KEPT)
        self._lock = Lock()

    def check_width(self, file: EmbeddingFile, field: str) -> None:
        """Raises InvalidParameter for `field` if an embedding is not for this text encoder."""
        width = int(self._table.embedding_dim)
        if file.width != width:
            rule = f"has vectors of width {file.width}, and this model's text encoder takes {width}"
            raise InvalidParameter(field, f"names the embedding {file.name!r}, which {rule}")

    def of(self, file: EmbeddingFile) -> Tensor:
        """Returns the vectors [vectors, width] of `file`, in the text encoder's precision. Raises ModelLoadError if it
        cannot be read, or is not what it was.
        """
        with self._lock:
            found = self._kept.get(file.digest)
        if found is None:
            found = read_vectors(file).to(self._device, self._table.weight.dtype)
            with self._lock:
                self._kept[file.digest] = found
        return found

    @contextmanager
    def put_in(self, vectors: Mapping[int, Tensor]) -> Iterator[None]:
        """Gives tokens at these places of a text of [1, tokens] other vectors while the context is open."""
        if not vectors:
            yield
            return

        def replace(_module: nn.Module, _given: Any, looked_up: Tensor) -> Tensor:
            changed = looked_up.clone()
            for place, vector in vectors.items():
                changed[0, place] = vector
            return changed

        handle = self._table.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()


def read_vectors(file: EmbeddingFile) -> Tensor:
    """Returns the vectors [vectors, width] of `file` in fp32. Raises ModelLoadError."""
    title, path = f"embedding {file.name!r}", Path(file.path)
    key, *_ = find_vectors(title, path)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.digest:
        raise ModelLoadError(f"{title}: {path.name} is not the file that the ingress has; give all nodes the same one")
    vectors = load(content)[key].float()
    if not bool(torch.isfinite(vectors).all()):
        raise ModelLoadError(f"{title}: its vectors are not finite; bring it again from where it came")
    listed: Tensor = vectors.reshape(-1, vectors.shape[-1])
    return listed


def _find_token_embedding(text_encoder: nn.Module) -> Any:
    # By name, because transformers moved it: once under `text_model`, now in the encoder's own embeddings.
    modules = text_encoder.named_modules()
    return next(each for name, each in modules if name.endswith("token_embedding") and isinstance(each, nn.Embedding))
