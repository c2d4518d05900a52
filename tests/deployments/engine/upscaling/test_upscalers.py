"""Upscalers: tiles give the whole picture's result within memory, and what goes wrong is told as what it is."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deployments.engine.device.memory import CpuMemory
from deployments.engine.protocol.errors import (
    Cancelled,
    EngineLost,
    EngineStopped,
    InvalidParameter,
    NumericalFailure,
    Overloaded,
)
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.upscaling.networks import CompactNet, RRDBNet
from deployments.engine.upscaling.tiles import find_windows
from deployments.engine.upscaling.upscalers import Upscalers
from deployments.training.demo.world.world import draw, random_scene
from tests.deployments.engine.upscaling.networks import compact, rrdb, save_upscaler, seeded

NAME = "tiny x4"


def drawing(side: int) -> ImageArray:
    return draw(random_scene(random.Random(3)), side)


def started(*networks: torch.nn.Module, folder: Path, budget: int | None = None, **options: Any) -> Upscalers:
    """Upscalers `tiny x4`, `tiny x4 1`, ... of `networks`."""
    names = [NAME, *(f"{NAME} {number}" for number in range(1, len(networks)))]
    specs = [save_upscaler(folder, name, network) for name, network in zip(names, networks, strict=True)]
    upscalers = Upscalers(specs, **options)
    upscalers.start(torch.device("cpu"), torch.float32, CpuMemory(budget))
    return upscalers


def whole(network: torch.nn.Module, picture: ImageArray) -> ImageArray:
    pixels = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.inference_mode():
        made = network(pixels)[0].clamp(0, 1).permute(1, 2, 0)
    return np.asarray((made * 255).round().to(torch.uint8).numpy(), dtype=np.uint8)


@pytest.mark.parametrize(
    "make", [rrdb, lambda: rrdb(shrink=2), compact, lambda: rrdb(blocks=6)], ids=["x4", "x2", "compact", "deep"]
)
def test_tiles_make_the_whole_pictures_result_and_no_seam_shows(
    make: Callable[[], RRDBNet | CompactNet], tmp_path: Path
) -> None:
    scale, network = make().scale, seeded(make, gain=2.0)
    # So little memory that the smallest tiles are used.
    upscalers = started(network, folder=tmp_path, budget=1)
    picture = drawing(170)
    made = upscalers.enlarge_to(NAME, picture, (170 * scale, 170 * scale)).astype(int)
    expected = whole(network, picture).astype(int)
    assert len(find_windows(170, 64)) > 4
    assert np.ptp(expected) > 20
    assert np.abs(made - expected).max() <= 1


def test_a_smaller_size_is_interpolated_down_and_a_larger_one_made_in_passes(tmp_path: Path) -> None:
    network = seeded(lambda: rrdb(doublings=1), gain=2.0)
    upscalers = started(network, folder=tmp_path)
    picture = drawing(32)
    once, twice = whole(network, picture), whole(network, whole(network, picture))
    reduced = np.asarray(Image.fromarray(once).resize((48, 48), Image.Resampling.LANCZOS))
    assert np.array_equal(upscalers.enlarge_to(NAME, picture, (48, 48)), reduced)
    assert np.array_equal(upscalers.enlarge_to(NAME, picture, (64, 64)), once)
    assert np.array_equal(upscalers.enlarge_to(NAME, picture, (128, 128)), twice)


def test_a_network_that_only_cleans_runs_once(tmp_path: Path) -> None:
    network = seeded(lambda: rrdb(shrink=4), gain=2.0)
    upscalers = started(network, folder=tmp_path)
    assert np.array_equal(upscalers.enlarge_to(NAME, drawing(32), (32, 32)), whole(network, drawing(32)))


def test_memory_that_runs_out_makes_the_tiles_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = seeded(rrdb, gain=2.0)
    upscalers = started(network, folder=tmp_path)
    tried: list[int] = []
    run = upscalers._run

    def run_small(chosen: Any, tile: ImageArray) -> ImageArray:
        tried.append(max(tile.shape))
        if max(tile.shape) > 64:
            raise torch.OutOfMemoryError("injected")
        return run(chosen, tile)

    monkeypatch.setattr(upscalers, "_run", run_small)
    made = upscalers.enlarge_to(NAME, drawing(170), (680, 680))
    assert np.abs(made.astype(int) - whole(network, drawing(170))).max() <= 1
    assert tried[:4] == [170, 128, 96, 64]


def test_no_memory_for_any_tile_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upscalers = started(seeded(rrdb), folder=tmp_path)

    def fail(*_: Any) -> ImageArray:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(upscalers, "_run", fail)
    with pytest.raises(Overloaded, match="no memory"):
        upscalers.enlarge_to(NAME, drawing(64), (256, 256))


def test_tiles_are_as_large_as_their_share_of_the_memory(tmp_path: Path) -> None:
    plenty = started(seeded(rrdb), folder=tmp_path)
    tight = started(seeded(rrdb), folder=tmp_path, budget=16 * plenty.tile_bytes // 3)
    assert 0 < tight.tile_bytes <= plenty.tile_bytes // 3
    assert plenty.bytes == sum(parameter.nbytes for parameter in rrdb().parameters())


def test_stopping_ends_the_work_at_the_next_tile(tmp_path: Path) -> None:
    upscalers = started(seeded(rrdb), folder=tmp_path, budget=1)
    asked: list[bool] = []

    def is_stopped() -> bool:
        asked.append(len(asked) == 3)
        return asked[-1]

    with pytest.raises(Cancelled):
        upscalers.enlarge_to(NAME, drawing(200), (800, 800), is_stopped=is_stopped)
    assert len(asked) == 4


def test_a_device_that_is_lost_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[bool] = []
    upscalers = started(seeded(rrdb), folder=tmp_path, on_device_lost=lambda: lost.append(True))

    def fail(*_: Any) -> ImageArray:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(upscalers, "_run", fail)
    with pytest.raises(EngineLost):
        upscalers.enlarge_to(NAME, drawing(64), (256, 256))
    assert lost == [True]


def test_a_result_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    network = seeded(rrdb)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(NumericalFailure):
        started(network, folder=tmp_path)


def test_unknown_names_and_far_too_large_results_are_refused(tmp_path: Path) -> None:
    upscalers = started(seeded(rrdb), folder=tmp_path)
    with pytest.raises(InvalidParameter, match="tiny x4"):
        upscalers.enlarge_to("another", drawing(64), (256, 256))
    with pytest.raises(InvalidParameter, match="too large"):
        upscalers.enlarge_to(NAME, np.zeros((4096, 2048, 3), np.uint8), (8192, 4096))
    with pytest.raises(EngineStopped):
        Upscalers([save_upscaler(tmp_path)]).enlarge_to(NAME, drawing(64), (256, 256))
