"""A sampler is checked once, whoever asks, and its verdict outlives the process under the same settings only."""

import threading
from pathlib import Path

import pytest

from deployments.engine.calibration.kept_files import KeptFiles
from deployments.engine.protocol.sampler_names import SamplerNotLinear
from deployments.engine.sampling import verdicts
from deployments.engine.sampling.verdicts import SamplerVerdicts

SETTINGS = {"class": "DDIMScheduler", "config": {"beta_start": 0.1}, "corrected": {}}


def never() -> SamplerNotLinear | None:
    raise AssertionError("it was checked again")


def test_a_verdict_is_found_once_and_has_the_same_words_after_a_restart(tmp_path: Path) -> None:
    first = SamplerVerdicts(SETTINGS, KeptFiles(tmp_path))
    assert not first.is_known("ddim")
    assert first.of("ddim", lambda: None) is None
    refused = first.of("lms", lambda: SamplerNotLinear("sampler", "it clips"))
    assert refused is not None
    assert first.of("lms", never) is refused
    first.save()
    again = SamplerVerdicts(SETTINGS, KeptFiles(tmp_path))
    assert again.is_known("ddim")
    assert again.of("ddim", never) is None
    found = again.of("lms", never)
    assert found is not None
    assert (found.message, found.field) == (refused.message, refused.field)


def test_other_settings_and_other_versions_are_checked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = SamplerVerdicts(SETTINGS, KeptFiles(tmp_path))
    first.of("ddim", lambda: None)
    first.save()
    assert not SamplerVerdicts(SETTINGS | {"corrected": {"clip_sample": False}}, KeptFiles(tmp_path)).is_known("ddim")
    monkeypatch.setattr(verdicts, "versions", lambda: {"diffusers": "another"})
    assert not SamplerVerdicts(SETTINGS, KeptFiles(tmp_path)).is_known("ddim")


def test_who_asks_for_one_sampler_does_not_wait_for_the_check_of_another() -> None:
    found, begun, goes_on = SamplerVerdicts(SETTINGS), threading.Event(), threading.Event()

    def slowly() -> None:
        begun.set()
        assert goes_on.wait(10)

    slow = threading.Thread(target=found.of, args=("lms", slowly))
    slow.start()
    assert begun.wait(10)
    assert found.of("ddim", lambda: None) is None
    same = threading.Thread(target=found.of, args=("lms", never))
    same.start()
    goes_on.set()
    for thread in (slow, same):
        thread.join(10)
    assert found.is_known("lms")
