"""Reads upscalers from safetensors, under the names that their files have in the wild. Refuses all others by reason.

ESRGAN's authors, BasicSR's early releases and its later ones name the same layers in three ways.
"""

import logging
import re
import time
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from deployments.engine.checkpoints.file_integrity import check_intact
from deployments.engine.checkpoints.weight_files import check_floating
from deployments.engine.device.errors import raise_if_sticky
from deployments.engine.models.hub import locate_file
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import UpscalerSpec
from deployments.engine.upscaling.networks import CompactNet, RRDBNet, compact_scale

log = logging.getLogger(__name__)

MAX_SCALE: Final = 8

UpscalerNetwork = RRDBNet | CompactNet

_WRAPPERS: Final = ("params_ema.", "params.", "state_dict.")
"""What programs that flatten nested files put before every name."""

_BASICSR: Final = (
    (re.compile(r"^RRDB_trunk\.(\d+)\.RDB(\d)\."), r"body.\1.rdb\2."),
    (re.compile(r"^trunk_conv\."), "conv_body."),
    (re.compile(r"^(?:upconv|conv_up)(\d)\."), lambda found: f"conv_up.{int(found[1]) - 1}."),
    (re.compile(r"^HRconv\."), "conv_hr."),
)
_ORIGINAL_BLOCK: Final = re.compile(r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.")
_ORIGINAL: Final = re.compile(r"^model\.(\d+)\.(weight|bias)$")
_ORIGINAL_BODY: Final = re.compile(r"^model\.1\.sub\.\d+\.(weight|bias)$")

_KNOWN: Final = "it must be an RRDBNet (ESRGAN, Real-ESRGAN) or Real-ESRGAN's compact network, in colour"


def load_upscaler(spec: UpscalerSpec, device: torch.device, dtype: torch.dtype) -> UpscalerNetwork:
    """Loads the network that `spec` names, ready to run. Raises ModelLoadError, which says what to change."""
    title = f"upscaler {spec.name!r}"
    path = locate_file(title, spec.source, spec.revision, spec.file)
    began = time.perf_counter()
    network = build_network(title, read_tensors(title, path))
    try:
        network = network.to(device, dtype).requires_grad_(False).eval()
    except Exception as error:
        raise_if_sticky(error)
        raise ModelLoadError(f"{title}: there is no memory for it on {device}") from error
    log.info("%s: a network of scale %d, loaded in %.1f s", title, network.scale, time.perf_counter() - began)
    return network


def read_tensors(title: str, path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file in fp32, by their names there. Raises ModelLoadError."""
    check_intact(title, path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except Exception as error:
        raise_if_sticky(error)
        raise ModelLoadError(
            f"{title}: {path.name} is no whole safetensors file; pickled weights (.pth) are not opened here: save "
            "their tensors as safetensors"
        ) from error
    check_floating(title, path.name, [name for name, tensor in tensors.items() if not tensor.is_floating_point()])
    return {name: tensor.float() for name, tensor in tensors.items()}


def build_network(title: str, tensors: Mapping[str, Tensor]) -> UpscalerNetwork:
    """Returns the network that has exactly these `tensors`, on the CPU. Raises ModelLoadError."""
    named = _rename(_unwrap(tensors))
    try:
        network = _build_compact(named) if "body.0.weight" in named else _build_rrdb(named)
        network.load_state_dict(named)
    except (LookupError, ArithmeticError, ValueError, RuntimeError) as error:
        raise ModelLoadError(
            f"{title}: its file has other layers than the networks that are known: {_KNOWN}"
        ) from error
    if not 1 <= network.scale <= MAX_SCALE:
        raise ModelLoadError(f"{title}: it enlarges {network.scale} times, and may 1 to {MAX_SCALE} times")
    return network


def _build_rrdb(named: Mapping[str, Tensor]) -> RRDBNet:
    first = named["conv_first.weight"]
    return RRDBNet(
        features=first.shape[0],
        blocks=_count(named, "body"),
        growth=named["body.0.rdb1.conv1.weight"].shape[0],
        doublings=_count(named, "conv_up"),
        shrink=isqrt(first.shape[1] // 3),
    )


def _build_compact(named: Mapping[str, Tensor]) -> CompactNet:
    first = named["body.0.weight"]
    layers = _count(named, "body")
    return CompactNet(first.shape[0], (layers - 3) // 2, compact_scale(named[f"body.{layers - 1}.weight"]))


def _count(named: Mapping[str, Any], prefix: str) -> int:
    """Returns how many numbered parts `prefix` has."""
    return len({name.split(".")[1] for name in named if name.startswith(f"{prefix}.")})


def _unwrap(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for wrapper in _WRAPPERS:
        # Where a file has both, the averaged weights are those that its authors mean.
        inside = {name.removeprefix(wrapper): value for name, value in tensors.items() if name.startswith(wrapper)}
        if inside:
            return inside
    return tensors


def _rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors under BasicSR's later names, which are ours."""
    if "model.0.weight" in tensors:
        return _rename_original(tensors)
    renamed = {}
    for name, value in tensors.items():
        for pattern, replacement in _BASICSR:
            name = pattern.sub(replacement, name)
        renamed[name] = value
    return renamed


def _rename_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the layers of ESRGAN's own files, which number them as they come.

    First convolution 0, blocks and their convolution 1, a doubling at 3, 6, ..., and the last two behind it.
    """
    numbers = sorted({int(found[1]) for name in tensors if (found := _ORIGINAL.match(name))})
    doublings = len(numbers) - 3
    if doublings < 0:
        raise KeyError("model")
    places = {0: "conv_first", numbers[-2]: "conv_hr", numbers[-1]: "conv_last"}
    places |= {number: f"conv_up.{index}" for index, number in enumerate(numbers[1:-2])}
    renamed = {}
    for name, value in tensors.items():
        if found := _ORIGINAL.match(name):
            name = f"{places[int(found[1])]}.{found[2]}"
        elif found := _ORIGINAL_BODY.match(name):
            name = f"conv_body.{found[1]}"
        else:
            name = _ORIGINAL_BLOCK.sub(r"body.\1.rdb\2.conv\3.", name)
        renamed[name] = value
    return renamed
