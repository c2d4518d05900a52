"""Where a file of a learnt embedding has its vectors: diffusers', AUTOMATIC1111's and SDXL's layouts. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deployments.engine.checkpoints.safetensors_header import Tensor, read_header
from deployments.engine.protocol.errors import ModelLoadError

A1111_KEY: Final = "emb_params"
CLIP_L, CLIP_G = "clip_l", "clip_g"

MOST_VECTORS: Final = 75
"""As many as a chunk of a prompt has places."""

_PRECISIONS: Final = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class VectorsInFile:
    """Where a file has its `vectors`, so many of them: under `keys`, one for each text encoder, of these `widths`."""

    keys: tuple[str, ...]
    vectors: int
    widths: tuple[int, ...]


def find_vectors(title: str, path: Path) -> VectorsInFile:
    """Returns where the vectors in `path` are.

    A file has one tensor, [vectors, width] or [width], whatever diffusers calls it; A1111 says `emb_params`. One for
    Stable Diffusion XL has two, `clip_l` and `clip_g`, for its two text encoders. Raises ModelLoadError, which begins
    with `title`, for another layout: nothing in a file is left out.
    """
    tensors = read_header(title, path).tensors
    keys = (CLIP_L, CLIP_G) if set(tensors) == {CLIP_L, CLIP_G} else tuple(tensors)
    if len(keys) != 1 and keys != (CLIP_L, CLIP_G):
        raise ModelLoadError(
            f"{title} must have one tensor, under any name (`{A1111_KEY}`, `{CLIP_L}`, ...), or `{CLIP_L}` and "
            f"`{CLIP_G}`, for Stable Diffusion XL; it has {len(keys)}"
        )
    if keys == (CLIP_G,):
        raise ModelLoadError(f"{title} has `{CLIP_G}` alone, and Stable Diffusion XL reads `{CLIP_L}` as well")
    shapes = [_shape_of(title, tensors[key]) for key in keys]
    if len({count for count, _ in shapes}) > 1:
        raise ModelLoadError(f"{title} must have as many vectors for one text encoder as for the other")
    return VectorsInFile(keys, shapes[0][0], tuple(width for _, width in shapes))


def _shape_of(title: str, tensor: Tensor) -> tuple[int, int]:
    """Returns the number of vectors and their width."""
    if tensor.dtype not in _PRECISIONS:
        raise ModelLoadError(f"{title}: its vectors are {tensor.dtype}, and must be {', '.join(_PRECISIONS)}")
    shape = (1, *tensor.shape) if len(tensor.shape) == 1 else tensor.shape
    if len(shape) != 2 or not 1 <= shape[0] <= MOST_VECTORS or not shape[1]:
        raise ModelLoadError(
            f"{title} must have 1 to {MOST_VECTORS} vectors, [vectors, width]; it has {list(tensor.shape)}"
        )
    return shape[0], shape[1]
