"""Reads a LoRA's file: every tensor is used, exactly, or the file is refused."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from deployments.engine.checkpoints.safetensors_header import SafetensorsHeader, read_header
from deployments.engine.lora.adapter import Adapter, LayerChange
from deployments.engine.lora.base_model import text_width
from deployments.engine.lora.layer_formats import read_change
from deployments.engine.lora.peft_settings import PeftSettings, read_peft_settings
from deployments.engine.lora.tensor_names import FileNames, read_names
from deployments.engine.protocol.errors import InvalidParameter, ModelLoadError
from deployments.engine.protocol.files.embeddings import EmbeddingFile
from deployments.engine.protocol.files.loras import LoraFile

LARGEST_BYTES: Final = 2**32
"""Differences of all of a Stable Diffusion's weights, in full precision, are smaller."""

_NUMBERS: Final = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_SETTINGS: Final = ("alpha", "on_input")


def read_adapter(file: LoraFile, path: Path) -> Adapter:
    """Reads and checks a LoRA, which lies at `path`.

    Raises InvalidParameter, which says what is wrong with the file, if it cannot be applied exactly.
    """
    title = f"the LoRA {file.name!r}"
    with _explained(title):
        return _read(title, file, path)


def describe_embeddings(file: LoraFile, path: Path) -> tuple[EmbeddingFile, ...]:
    """Returns what embeddings the LoRA at `path` brings along, by its file's header alone: no weights are read.

    Raises InvalidParameter as `read_adapter` does, as far as the header shows what is wrong.
    """
    title = f"the LoRA {file.name!r}"
    with _explained(title):
        header, names = _read_header(title, path)
        shapes = {
            token: _embedding_shape(token, key, header.tensors[key].shape) for token, key in names.embeddings.items()
        }
    # They have no place of their own, and are identified by the file that they came with.
    return tuple(EmbeddingFile(token, token, "", f"{file.digest} {token}", *shape) for token, shape in shapes.items())


@contextmanager
def _explained(title: str) -> Iterator[None]:
    """Raises InvalidParameter, which says what is wrong with a file, in place of what reading it raises."""
    try:
        yield
    except ModelLoadError as error:
        raise InvalidParameter("loras", error.message) from None
    except ValueError as error:
        raise InvalidParameter("loras", f"{title} cannot be used: {error}") from None


def _read_header(title: str, path: Path) -> tuple[SafetensorsHeader, FileNames]:
    if path.is_file() and path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"it has more than {LARGEST_BYTES:,} bytes")
    header = read_header(title, path)
    return header, read_names(header.tensors)


def _read(title: str, file: LoraFile, path: Path) -> Adapter:
    header, names = _read_header(title, path)
    # Read once, so that the digest is that of the very bytes.
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if file.digest and digest != file.digest:
        raise ValueError("its file has just been replaced; ask again")
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError):
        raise ModelLoadError(f"{title}: its file is not valid; bring it again from where it came") from None
    if tensors.keys() != header.tensors.keys():
        raise ValueError("its file has just been replaced; ask again")
    numbers = {key: _as_numbers(key, tensor) for key, tensor in tensors.items()}
    settings = read_peft_settings(header.metadata)
    layers = {
        network: {
            layer: _read_layer(parts, numbers, names.spellings[network, layer], settings.get(network))
            for layer, parts in found.items()
        }
        for network, found in names.networks.items()
    }
    return Adapter(file.name, digest, layers, _embeddings(names, numbers), text_width(header, names))


def _read_layer(
    parts: Mapping[str, str], numbers: Mapping[str, Tensor], spelling: str, settings: PeftSettings | None
) -> LayerChange:
    tensors = {part: numbers[key] for part, key in parts.items()}
    if settings is not None and "down" in tensors:
        if "alpha" in tensors:
            raise ValueError(f"{spelling!r} has an alpha in its metadata and another among its tensors")
        tensors["alpha"] = torch.tensor(settings.alpha_of(spelling, tensors["down"].shape[0]))
    return read_change(spelling, tensors)


def _as_numbers(key: str, tensor: Tensor) -> Tensor:
    """Returns a tensor in float32. Raises ValueError if it holds what are no weights."""
    is_setting = key.endswith(_SETTINGS)
    if tensor.dtype not in _NUMBERS and not is_setting:
        raise ValueError(f"its tensor {key!r} is {str(tensor.dtype).removeprefix('torch.')}, and weights are floats")
    if tensor.numel() == 0 or (tensor.numel() > 1 and is_setting):
        raise ValueError(f"its tensor {key!r} has {tensor.numel()} numbers")
    numbers = tensor.to(torch.float32)
    if not torch.isfinite(numbers).all():
        raise ValueError(f"its tensor {key!r} has numbers that are not finite")
    return numbers


def _embeddings(names: FileNames, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for token, key in names.embeddings.items():
        found[token] = numbers[key].reshape(_embedding_shape(token, key, numbers[key].shape))
    return found


def _embedding_shape(token: str, key: str, shape: Sequence[int]) -> tuple[int, int]:
    """Returns the number of vectors, and their width, of an embedding's tensor. Raises ValueError if it is none."""
    if len(shape) not in (1, 2) or not token.isprintable() or len(token) > 100:
        raise ValueError(f"its tensor {key!r} is no textual inversion")
    return (1 if len(shape) == 1 else shape[0]), shape[-1]
