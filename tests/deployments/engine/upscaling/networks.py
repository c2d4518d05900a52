"""Tiny upscalers with weights of their own, as files under every naming that there is in the wild."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deployments.engine.protocol.spec import UpscalerSpec
from deployments.engine.upscaling.networks import CompactNet, RRDBNet


def seeded(make: Callable[[], nn.Module], seed: int = 1, gain: float = 1.0) -> nn.Module:
    """A network with the weights of that seed."""
    torch.manual_seed(seed)
    network = make().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(gain)
    return network


def rrdb(doublings: int = 2, shrink: int = 1, blocks: int = 2) -> RRDBNet:
    return RRDBNet(features=8, blocks=blocks, growth=4, doublings=doublings, shrink=shrink)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone().contiguous() for name, value in network.state_dict().items()}


def as_basicsr(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of BasicSR's later releases and Real-ESRGAN's."""
    return {re.sub(r"^conv_up\.(\d+)", lambda at: f"conv_up{int(at[1]) + 1}", n): v for n, v in tensors.items()}


def as_early_basicsr(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in tensors.items():
        name = re.sub(r"^body\.(\d+)\.rdb(\d)", r"RRDB_trunk.\1.RDB\2", name)
        name = name.replace("conv_body", "trunk_conv").replace("conv_hr", "HRconv")
        renamed[re.sub(r"^conv_up\.(\d+)", lambda at: f"upconv{int(at[1]) + 1}", name)] = value
    return renamed


def as_original(tensors: dict[str, Tensor], blocks: int = 2) -> dict[str, Tensor]:
    """Under the numbers of ESRGAN's own files."""
    doublings = sum(name.startswith("conv_up") and name.endswith("weight") for name in tensors)
    last = 3 * doublings + 2
    renamed = {}
    for name, value in tensors.items():
        name = re.sub(r"^body\.(\d+)\.rdb(\d)\.conv(\d)", r"model.1.sub.\1.RDB\2.conv\3.0", name)
        name = name.replace("conv_first", "model.0").replace("conv_body", f"model.1.sub.{blocks}")
        name = name.replace("conv_hr", f"model.{last}").replace("conv_last", f"model.{last + 2}")
        renamed[re.sub(r"^conv_up\.(\d+)", lambda at: f"model.{3 * int(at[1]) + 3}", name)] = value
    return renamed


def wrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the averaged weights beside others, as programs flatten them."""
    averaged = {f"params_ema.{name}": value for name, value in as_basicsr(tensors).items()}
    return averaged | {f"params.{name}": value * 0 for name, value in as_basicsr(tensors).items()}


NAMINGS: Final[dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = {
    "BasicSR": as_basicsr,
    "early BasicSR": as_early_basicsr,
    "ESRGAN": as_original,
    "wrapped": wrapped,
}


def compact(scale: int = 2) -> CompactNet:
    return CompactNet(features=8, convolutions=3, scale=scale)


def save_upscaler(folder: Path, name: str = "tiny x4", network: nn.Module | None = None) -> UpscalerSpec:
    """Saves a small network, whose pictures differ from an interpolation's, and returns its row."""
    path = folder / f"{name.replace(' ', '-')}.safetensors"
    save_file(as_basicsr(tensors_of(network or seeded(rrdb, gain=2.0))), path)
    return UpscalerSpec(name, str(path))
