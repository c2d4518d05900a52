"""Reads an IP-Adapter's file: every tensor is used, exactly, or the file is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from deployments.engine.checkpoints.safetensors_header import read_header
from deployments.engine.checkpoints.weight_files import list_first
from deployments.engine.ip_adapter.image_projection import Projection, build_projection
from deployments.engine.protocol.errors import ModelLoadError

_PROJECTION: Final = "image_proj."
_ATTENTION: Final = "ip_adapter."
_FLOATS: Final = ("F16", "BF16", "F32", "F64")

LayerShapes = Sequence[tuple[int, int]]
"""The outputs and inputs of a UNet's projections of the prompt, layer by layer: of the keys, of the values."""


@dataclass(frozen=True, eq=False)
class IpAdapterWeights:
    """What is in a file: the projection of pictures, and the weights [outputs, inputs] that make the keys and values of
    its tokens, in the order of the UNet's layers: a layer's keys, its values.
    """

    projection: Projection
    attention: tuple[Tensor, ...]


def read_ip_adapter(title: str, path: Path, layers: LayerShapes) -> IpAdapterWeights:
    """Reads and checks the IP-Adapter in `path`, for a UNet of these `layers`.

    Raises ModelLoadError, which begins with `title` and says why it cannot be applied exactly.
    """
    names = check_header(title, path, layers)
    try:
        # Copied, so that the file may be replaced while the adapter is used.
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        start = len(_PROJECTION)
        projection = build_projection(
            {name[start:]: tensor for name, tensor in tensors.items() if name.startswith(_PROJECTION)}
        )
        return IpAdapterWeights(projection, tuple(tensors[name] for name in names))
    except ValueError as error:
        raise ModelLoadError(f"{title} cannot be used: {error}") from None
    except SafetensorError:
        raise ModelLoadError(f"{title}: {path.name} is not valid; bring it again from where it came") from None


def check_header(title: str, path: Path, layers: LayerShapes) -> list[str]:
    """Returns the names of the weights of `layers`, in their order. Raises ModelLoadError, as `read_ip_adapter` does,
    for what shows in the file's header.
    """
    header = read_header(title, path)
    if odd := [name for name, tensor in header.tensors.items() if tensor.dtype not in _FLOATS]:
        raise ModelLoadError(f"{title} has weights that are not floating-point numbers ({list_first(odd)})")
    try:
        names = _attention_names(header.tensors, len(layers))
        _check_layers([header.tensors[name].shape for name in names], layers)
    except ValueError as error:
        raise ModelLoadError(f"{title} cannot be used: {error}") from None
    return names


def _attention_names(names: Mapping[str, object], layers: int) -> list[str]:
    """Returns the names of the keys' and values' weights in the order of the layers; `layers` counts both.

    Raises ValueError for a file that has other weights.
    """
    if not all(any(name.startswith(start) for name in names) for start in (_PROJECTION, _ATTENTION)):
        raise ValueError(f"it has no weights {_PROJECTION}* and {_ATTENTION}*, as an IP-Adapter's file has")
    if any("lora" in name for name in names):
        raise ValueError("it is FaceID, which needs a face recogniser's embeddings, and brings LoRAs along")
    # Self-attention layers are counted, too, and have none.
    asked = [f"{_ATTENTION}{2 * i + 1}.to_{kind}_ip.weight" for i in range(layers // 2) for kind in "kv"]
    found = {name for name in names if not name.startswith(_PROJECTION)}
    if found != set(asked):
        count = len({name.split(".")[1] for name in found if name.startswith(_ATTENTION)})
        if odd := sorted(name for name in found if not name.endswith(("to_k_ip.weight", "to_v_ip.weight"))):
            raise ValueError(f"it has weights that no IP-Adapter has ({list_first(odd)})")
        raise ValueError(f"it is for a UNet of {count} layers of cross-attention, and this model's has {layers // 2}")
    return asked


def _check_layers(shapes: Sequence[tuple[int, ...]], layers: LayerShapes) -> None:
    for i, (shape, layer) in enumerate(zip(shapes, layers, strict=True)):
        if shape != layer:
            raise ValueError(
                f"it is for another base model: weights of its layer {i // 2} are {' x '.join(map(str, shape))}, and "
                f"this model's {' x '.join(map(str, layer))}"
            )
