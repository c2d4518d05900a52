"""Where a file of a learnt embedding has its vectors: diffusers', AUTOMATIC1111's and SDXL's layouts. No torch."""

from pathlib import Path
from typing import Final

from deployments.engine.checkpoints.safetensors_header import read_header
from deployments.engine.protocol.errors import ModelLoadError

A1111_KEY: Final = "emb_params"
CLIP_L, CLIP_G = "clip_l", "clip_g"

MOST_VECTORS: Final = 75
"""As many as a chunk of a prompt has places."""

_PRECISIONS: Final = ("F32", "F16", "BF16")


def find_vectors(title: str, path: Path) -> tuple[str, int, int]:
    """Returns the key of the vectors in `path`, their number and their width.

    A file has one tensor, [vectors, width] or [width], whatever diffusers calls it; A1111 says `emb_params`. Raises
    ModelLoadError, which begins with `title`, for another layout: nothing in a file is left out.
    """
    tensors = read_header(title, path).tensors
    if CLIP_G in tensors:
        raise ModelLoadError(
            f"{title} is for SDXL: it has `{CLIP_G}`, for a second text encoder, and embeddings are served for one"
        )
    if len(tensors) != 1:
        raise ModelLoadError(
            f"{title} must have one tensor, under any name (`{A1111_KEY}`, `{CLIP_L}`, ...); it has {len(tensors)}"
        )
    ((key, tensor),) = tensors.items()
    if tensor.dtype not in _PRECISIONS:
        raise ModelLoadError(f"{title}: its vectors are {tensor.dtype}, and must be {', '.join(_PRECISIONS)}")
    shape = (1, *tensor.shape) if len(tensor.shape) == 1 else tensor.shape
    if len(shape) != 2 or not 1 <= shape[0] <= MOST_VECTORS or not shape[1]:
        raise ModelLoadError(
            f"{title} must have 1 to {MOST_VECTORS} vectors, [vectors, width]; it has {list(tensor.shape)}"
        )
    return key, shape[0], shape[1]
