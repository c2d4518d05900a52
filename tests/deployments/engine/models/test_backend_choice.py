"""OpenVINO runs what it can run exactly, and nobody gets another backend than the one asked for."""

import sys
from pathlib import Path

import pytest
import torch

from deployments.engine.models.backend_choice import start_openvino
from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.errors import ModelLoadError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("backend", ["auto", "openvino"])
def test_a_cpu_in_fp32_runs_on_openvino(backend: str) -> None:
    assert start_openvino(EngineConfig(backend=backend), CPU, torch.float32) is not None


@pytest.mark.parametrize(("device", "dtype"), [(CUDA, torch.float32), (CUDA, torch.float16), (CPU, torch.bfloat16)])
def test_auto_is_torch_elsewhere_and_openvino_by_name_is_refused_there(
    device: torch.device, dtype: torch.dtype
) -> None:
    assert start_openvino(EngineConfig(), device, dtype) is None
    with pytest.raises(ModelLoadError, match=r"`backend` is openvino, and it serves (CPUs|float32) here, not"):
        start_openvino(EngineConfig(backend="openvino"), device, dtype)


def test_torch_by_name_is_torch() -> None:
    assert start_openvino(EngineConfig(backend="torch"), CPU, torch.float32) is None


def test_where_it_is_not_installed_auto_is_torch_and_openvino_by_name_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "deployments.engine.openvino.runtime", None)
    assert start_openvino(EngineConfig(), CPU, torch.float32) is None
    with pytest.raises(ModelLoadError, match="cannot be imported"):
        start_openvino(EngineConfig(backend="openvino"), CPU, torch.float32)


def test_converted_networks_are_kept_in_a_folder_of_their_own(tmp_path: Path) -> None:
    kept, not_kept = (start_openvino(EngineConfig(), CPU, torch.float32, folder) for folder in (tmp_path, None))
    assert kept is not None
    assert kept.folder == tmp_path / "openvino"
    assert not_kept is not None
    assert not_kept.folder is None
