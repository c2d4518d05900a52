"""Chooses what runs an engine's networks: OpenVINO or torch."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.errors import ModelLoadError

if TYPE_CHECKING:
    from deployments.engine.openvino.runtime import OpenVinoRuntime

log = logging.getLogger(__name__)


def start_openvino(
    config: EngineConfig, device: torch.device, dtype: torch.dtype, folder: Path | None = None
) -> "OpenVinoRuntime | None":
    """Starts OpenVINO if `config.backend` chooses it for networks in `dtype` on `device`; None stands for torch.

    `auto` is OpenVINO on a CPU in fp32, where it is installed. `folder` keeps what is converted for later starts.
    Raises ModelLoadError if it is asked for by name and cannot serve.
    """
    if config.backend == "torch":
        return None
    refusal = _refusal(device, dtype)
    if refusal is None:
        try:
            # Imported here, because a GPU needs none of it.
            from deployments.engine.openvino.runtime import OpenVinoRuntime
        except ImportError as error:
            refusal = f"it cannot be imported ({error}); install `openvino`, or choose torch"
        else:
            return OpenVinoRuntime(
                config.threads or torch.get_num_threads(), None if folder is None else folder / "openvino"
            )
    if config.backend == "openvino":
        raise ModelLoadError(f"`backend` is openvino, and {refusal}")
    log.info("torch runs the networks, not OpenVINO: %s", refusal)
    return None


def _refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"it serves CPUs here, not {device.type}: choose torch, or `device` cpu"
    if dtype != torch.float32:
        return f"it serves float32 here, not {str(dtype).removeprefix('torch.')}: choose torch, or `dtype` float32"
    return None
