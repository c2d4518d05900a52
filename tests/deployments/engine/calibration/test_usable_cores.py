"""A process counts the cores that it may keep busy, not those of the machine."""

import os
from pathlib import Path

import pytest

from deployments.engine.calibration.usable_cores import usable_cores

BOUND = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("written", "cores"),
    [("max 100000", 8), ("400000 100000", 4), ("250000 100000", 3), ("10000 100000", 1), ("1600000 100000", 8)],
)
def test_a_containers_share_bounds_the_cores(tmp_path: Path, written: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{written}\n")
    assert usable_cores(tmp_path) == cores


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("200000", 2)])
def test_the_first_version_of_control_groups_counts_as_well(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize("written", [None, "", "nonsense here"])
def test_without_a_share_to_read_the_bound_cores_count(tmp_path: Path, written: str | None) -> None:
    if written is not None:
        (tmp_path / "cpu.max").write_text(written)
    assert usable_cores(tmp_path) == BOUND
