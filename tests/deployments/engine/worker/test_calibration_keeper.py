"""What was measured of a model is taken for another one's only if their calls are the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deployments.engine.calibration.kept_files import KeptFiles
from deployments.engine.device.memory import CpuMemory
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.request import Bucket
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.scheduling.admission import Admission
from deployments.engine.worker.calibration_keeper import CalibrationKeeper

SIZES = (2, 4)


def admission() -> Admission:
    return Admission(16, SIZES, CpuMemory(), 1)


@pytest.fixture
def tiled(tiny_checkpoint: Path) -> LoadedModel:
    """A model whose VAE sees large pictures in tiles."""
    return load_model(ModelSpec("tiles", str(tiny_checkpoint), vae_tiling=True), torch.device("cpu"), torch.float32)


def keep(model: LoadedModel, folder: Path) -> None:
    """Leaves in `folder` what an engine has measured of `model`: what a large picture's decoding took, among it."""
    keeper, measured = CalibrationKeeper(KeptFiles(folder)), admission()
    native = Bucket(model.spec.name, *model.spec.native)
    keeper.restore(model, measured)
    measured.costs.record_call(native, 2, 0, 0.5)
    measured.costs.find_knee(native)
    measured.plan.record_peak("decode", Bucket(model.spec.name, 256, 256), 1, 1000)
    keeper.save(measured)


def test_a_tiles_peak_is_not_taken_for_that_of_a_whole_picture(tiled: LoadedModel, tmp_path: Path) -> None:
    keep(tiled, tmp_path)
    again = admission()
    assert CalibrationKeeper(KeptFiles(tmp_path)).restore(tiled, again)
    assert again.plan.has_measured("decode", Bucket("tiles", 256, 256), 1)
    whole, other = replace(tiled, spec=replace(tiled.spec, vae_tiling=False)), admission()
    assert not CalibrationKeeper(KeptFiles(tmp_path)).restore(whole, other)
    assert not other.plan.has_measured("decode", Bucket("tiles", 256, 256), 1)
