"""Reads a LoRA's file: every tensor is used, exactly, or the file is refused."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from deployments.engine.checkpoints.safetensors_header import read_header
from deployments.engine.lora.adapter import Adapter, LayerChange
from deployments.engine.lora.base_model import text_width
from deployments.engine.lora.layer_formats import read_change
from deployments.engine.lora.peft_settings import PeftSettings, read_peft_settings
from deployments.engine.lora.tensor_names import FileNames, read_names
from deployments.engine.protocol.errors import InvalidParameter, ModelLoadError
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
    try:
        return _read(title, file, path)
    except ModelLoadError as error:
        raise InvalidParameter("loras", error.message) from None
    except ValueError as error:
        raise InvalidParameter("loras", f"{title} cannot be used: {error}") from None


def _read(title: str, file: LoraFile, path: Path) -> Adapter:
    if path.is_file() and path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"it has more than {LARGEST_BYTES:,} bytes")
    header = read_header(title, path)
    names = read_names(header.tensors)
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
        vectors = numbers[key].reshape(1, -1) if numbers[key].dim() == 1 else numbers[key]
        if vectors.dim() != 2 or not token.isprintable() or len(token) > 100:
            raise ValueError(f"its tensor {key!r} is no textual inversion")
        found[token] = vectors
    return found
