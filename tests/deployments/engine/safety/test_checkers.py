"""Checkers by class path: what is loaded, what counts as an answer, and what follows from it by the policy."""

from collections.abc import Sequence

import numpy as np
import pytest

from deployments.engine.protocol.errors import Filtered, ModelLoadError, SafetyCheckFailed
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.safety import CheckerSpec, Finding, SafetySpec, SafetyVerdict
from deployments.engine.safety.checkers import Checkers, load_class
from tests.deployments.engine.safety.checkers import Bright, Forgetful, spec_of

IMAGES = [np.full((8, 8, 3), value, dtype=np.uint8) for value in (0, 100, 255)]


class Says:
    def __init__(self, *verdicts: SafetyVerdict) -> None:
        self._verdicts = verdicts

    def check(self, images: Sequence[ImageArray]) -> list[SafetyVerdict]:
        return list(self._verdicts)


def test_the_first_checker_that_flags_decides_and_else_the_highest_score_is_told() -> None:
    first = Says(SafetyVerdict(False, "", 0.1), SafetyVerdict(True, "a", 0.2))
    second = Says(SafetyVerdict(False, "b", 0.3), SafetyVerdict(True, "c", 0.9))
    checkers = Checkers(SafetySpec(), {"first": first, "second": second})
    assert checkers.check(IMAGES[:2]) == [Finding("passed", "b", 0.3), Finding("flagged", "a", 0.2)]


def test_an_image_is_told_the_checkers_name_where_it_gives_no_category() -> None:
    checkers = Checkers(SafetySpec(), {"logo": Says(SafetyVerdict(True))})
    assert checkers.check(IMAGES[:1]) == [Finding("flagged", "logo", 0.0)]


def test_what_is_no_verdict_for_each_image_is_a_failed_check() -> None:
    with pytest.raises(ValueError, match="2 verdicts for 3 images"):
        Checkers(SafetySpec(), {"f": Forgetful()}).check(IMAGES)
    with pytest.raises(TypeError, match="must answer with SafetyVerdict"):
        Checkers(SafetySpec(), {"t": Says(True)}).check(IMAGES[:1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must answer with SafetyVerdict"):
        Checkers(SafetySpec(), {"n": Says(SafetyVerdict(None))}).check(IMAGES[:1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not finite"):
        Checkers(SafetySpec(), {"n": Says(SafetyVerdict(False, "", float("nan")))}).check(IMAGES[:1])


def test_the_policy_decides_what_becomes_of_an_image() -> None:
    passed, flagged, unchecked = Finding("passed"), Finding("flagged", "bright", 0.9), Finding("unchecked")
    report = Checkers(spec_of("report", "Bright"), {"ours": Bright()})
    assert [report.judge(finding) for finding in (passed, flagged, unchecked)] == [passed, flagged, unchecked]
    required = Checkers(spec_of("required", "Bright"), {"ours": Bright()})
    assert required.judge(passed) == passed
    filtered, failed = required.judge(flagged), required.judge(unchecked)
    assert isinstance(filtered, Filtered)
    assert "bright" in filtered.message
    assert isinstance(failed, SafetyCheckFailed)


def test_a_class_gets_its_settings() -> None:
    checker = load_class("it", spec_of("report", "Bright", limit=50.0).checkers[0])
    assert [verdict.flagged for verdict in checker.check(IMAGES)] == [False, True, True]


@pytest.mark.parametrize(
    ("class_path", "settings"),
    [
        ("no.such.module:Checker", {}),
        ("tests.deployments.engine.safety.checkers:NoSuchClass", {}),
        ("tests.deployments.engine.safety.checkers", {}),
        ("tests.deployments.engine.safety.checkers:Bright", {"no_such_setting": 1}),
        ("tests.deployments.engine.safety.checkers:NoMethod", {}),
    ],
)
def test_a_class_that_cannot_be_made_is_refused_by_name(class_path: str, settings: dict[str, int]) -> None:
    with pytest.raises(ModelLoadError, match=r"^it: '.*(names no class|has no method)"):
        load_class("it", CheckerSpec("c", class_path=class_path, settings=settings))


def test_a_specification_says_one_thing() -> None:
    for wrong in (
        {"class_path": "a:B", "source": "folder"},
        {"settings": {"a": 1}},
        {"revision": "0123"},
    ):
        with pytest.raises(ValueError, match="checker 'c'"):
            CheckerSpec("c", **wrong)
    with pytest.raises(ValueError, match="at least one checker"):
        SafetySpec("required")
    with pytest.raises(ValueError, match="a name of its own"):
        SafetySpec("report", (CheckerSpec("c"), CheckerSpec("c")))
