"""Files of learnt embeddings for tests, in every layout that is read."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from deployments.embeddings import read_embedding
from deployments.engine.protocol.files.embeddings import EmbeddingFile
from tests.deployments.engine.tiny import WIDTH


def vectors_of(name: str, count: int = 1, width: int = WIDTH) -> Tensor:
    """Vectors as large as the tiny text encoder's own, and others for each name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    return 0.16 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def save_embedding(
    folder: Path, name: str, count: int = 1, *, key: str = "emb_params", token: str = "", width: int = WIDTH
) -> EmbeddingFile:
    """Writes `name`.safetensors with `count` vectors to `folder`, and returns what is known of it."""
    path = folder / f"{name}.safetensors"
    save_file({key: vectors_of(name, count, width)}, path)
    return read_embedding(name, path, token)


def save_xl_embedding(folder: Path, name: str, widths: tuple[int, int], count: int = 1) -> EmbeddingFile:
    """The same for two text encoders."""
    path = folder / f"{name}.safetensors"
    pairs = zip(("clip_l", "clip_g"), widths, strict=True)
    save_file({key: vectors_of(f"{name} {key}", count, width) for key, width in pairs}, path)
    return read_embedding(name, path)
