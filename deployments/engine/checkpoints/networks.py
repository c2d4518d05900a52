"""Loads networks of diffusers' and transformers' from safetensors, whole or not at all."""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from deployments.engine.checkpoints.config_keys import ANY_NETWORK, NETWORKS
from deployments.engine.checkpoints.config_rules import check_class, check_config
from deployments.engine.checkpoints.file_integrity import read_config
from deployments.engine.checkpoints.library_loading import load_exclusively
from deployments.engine.checkpoints.library_networks import ModelMixin
from deployments.engine.checkpoints.weight_files import (
    DIFFUSERS,
    TRANSFORMERS,
    check_weights,
    choose_weights,
    list_first,
    missing_weights_error,
)
from deployments.engine.device.errors import is_out_of_memory, raise_if_sticky
from deployments.engine.protocol.errors import ModelLoadError

log = logging.getLogger(__name__)

# Saved by older versions, although it is computed, or only counts training steps.
_HARMLESS: Final = re.compile(r"(^|\.)(position_ids|num_batches_tracked)$")


PROCESSOR: Final = "preprocessor_config.json"
"""The file beside a vision model that says how pictures are prepared for it."""


def load_image_processor(title: str, folder: Path) -> Any:
    """Loads transformers' image processor that PROCESSOR in `folder` describes.

    Raises ModelLoadError, which begins with `title`.
    """
    # Imported here because it is slow, and few models have one.
    from transformers import AutoImageProcessor

    read_config(title, folder / PROCESSOR)
    try:
        # Always with Pillow: with torchvision installed, transformers would prepare images slightly differently.
        with load_exclusively():
            return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except Exception as error:  # transformers raises all sorts on files that are broken or of another kind
        raise_if_sticky(error)
        raise ModelLoadError(f"{title}: its {PROCESSOR} does not make an image processor") from error


def load_network(
    title: str, source: str, folder: Path, kind: Any, dtype: torch.dtype, device: torch.device, *, half: bool
) -> Any:
    """Loads the network in `folder` as an instance of `kind`, ready to run in `dtype` on `device`.

    `kind` is a class of diffusers' or transformers', or one of transformers' Auto classes; `half` says which files are
    wanted. The libraries would fill what is missing with random numbers and only warn. Raises ModelLoadError, which
    begins with `title` and names the key or file, and what to do; `source` is what the configuration calls the folder.
    """
    config = read_config(title, folder / "config.json")
    check_config(title, config, ANY_NETWORK)
    if kind.__name__ in NETWORKS:
        check_class(title, config, kind.__name__)
        check_config(title, config, NETWORKS[kind.__name__])
    names = [path.name for path in folder.iterdir()]
    files = choose_weights(names, half=half, stem=DIFFUSERS if _is_diffusers(kind) else TRANSFORMERS)
    if files is None:
        raise missing_weights_error(title, source, names)
    check_weights(title, folder, files)
    if files.is_half and not half:
        log.info("%s has %s weights only; they are upcast to %s", title, files.variant, _name(dtype))
    network = _from_pretrained(title, folder, kind, files.variant, dtype).to(device).eval().requires_grad_(False)
    if device.type == "cpu":
        _copy_weights(network)
    check_finite(title, network, dtype)
    return network


def _copy_weights(network: nn.Module) -> None:
    """Copies all weights into memory, in place: as they come, they may be the file itself, and change with it."""
    # One at a time, and weights that layers share stay shared.
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()


def _from_pretrained(title: str, folder: Path, kind: Any, variant: str | None, dtype: torch.dtype) -> Any:
    # transformers has renamed the argument, diffusers has not.
    precision = {"torch_dtype" if _is_diffusers(kind) else "dtype": dtype}
    try:
        with load_exclusively():
            network, found = kind.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                variant=variant,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported, and refused by name below
                **precision,
            )
    except Exception as error:  # the libraries raise all sorts on configs that they cannot make a network of
        raise_if_sticky(error)
        if is_out_of_memory(error):
            raise
        raise ModelLoadError(
            f"{title} could not be loaded: its config.json and its weights do not make a {kind.__name__}"
        ) from error
    _check_found(title, type(network).__name__, found)
    empty = [name for name, tensor in network.state_dict().items() if tensor.is_meta]
    if empty:
        raise ModelLoadError(f"{title} lacks weights that a {type(network).__name__} needs: {list_first(empty)}")
    return network


def _check_found(title: str, kind: str, found: Mapping[str, Any]) -> None:
    faults = {
        f"lacks weights that a {kind} needs": found["missing_keys"],
        "has weights of another shape than its config.json says": [key for key, *_ in found["mismatched_keys"]],
        f"has weights that a {kind} does not know": _drop_harmless(found["unexpected_keys"]),
    }
    wrong = [f"{what} ({list_first(keys)})" for what, keys in faults.items() if keys]
    if wrong:
        raise ModelLoadError(
            f"{title} {', and '.join(wrong)}; bring the whole checkpoint of one, as its own `save_pretrained` writes it"
        )


def _drop_harmless(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if not _HARMLESS.search(key)]


def check_finite(title: str, network: nn.Module, dtype: torch.dtype) -> None:
    """Raises ModelLoadError, which begins with `title`, if weights of `network` are not finite in `dtype`."""
    broken = [
        name
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise ModelLoadError(
            f"{title} has weights that are not finite in {_name(dtype)} ({list_first(broken)}); the checkpoint is "
            "broken, or holds numbers that only a wider dtype can: set `dtype` to float32, or bring another"
        )


def _is_diffusers(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, ModelMixin)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
