"""The queue of checks: batches, checks that fail, hang or run out of memory, and a device that is lost."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from deployments.engine.device.errors import DeviceLost, convert_device_errors
from deployments.engine.device.memory import CpuMemory
from deployments.engine.protocol.errors import EngineError, SafetyCheckFailed
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.request import Bucket
from deployments.engine.protocol.safety import CheckerSpec, Finding, SafetyPolicy, SafetySpec, SafetyVerdict
from deployments.engine.safety.check_queue import BATCH, Check, CheckQueue
from deployments.engine.safety.checkers import Checkers, SafetyChecker
from deployments.engine.scheduling.memory_plan import MemoryPlan
from tests.deployments.engine.safety.checkers import Broken, Hanging

BUCKET = Bucket("m", 64, 64)
LONG = 30.0


class Counting:
    """Passes all images, and remembers how many it was given at once; waits for `gate` first."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.reached = threading.Event()

    def check(self, images: Sequence[ImageArray]) -> list[SafetyVerdict]:
        self.reached.set()
        assert self.gate.wait(LONG)
        self.batches.append(len(images))
        return [SafetyVerdict(False, "", float(image[0, 0, 0])) for image in images]


class Full:
    """Runs out of memory with more than one image."""

    def check(self, images: Sequence[ImageArray]) -> list[SafetyVerdict]:
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return [SafetyVerdict(False)]


class Lost:
    def check(self, images: Sequence[ImageArray]) -> list[SafetyVerdict]:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


class Answers:
    """What becomes of images, in the order in which that is known."""

    def __init__(self) -> None:
        self.found: list[Finding | EngineError] = []
        self._news = threading.Condition()

    def put(self, answer: Finding | EngineError) -> None:
        with self._news:
            self.found.append(answer)
            self._news.notify_all()

    def wait_for(self, count: int) -> list[Finding | EngineError]:
        with self._news:
            assert self._news.wait_for(lambda: len(self.found) >= count, LONG)
            return list(self.found)


def checkers(checker: SafetyChecker, policy: SafetyPolicy = "required", timeout_s: float = LONG) -> Checkers:
    spec = SafetySpec(policy, (CheckerSpec("c", class_path="a:B"),), timeout_s)
    return Checkers(spec, {"c": checker})


@contextmanager
def queue(plan: MemoryPlan | None = None, errors: list[BaseException] | None = None) -> Iterator[CheckQueue]:
    def guard(action: Callable[[], object]) -> None:
        try:
            with convert_device_errors():
                action()
        except BaseException as error:
            assert errors is not None
            errors.append(error)

    checks = CheckQueue(plan or MemoryPlan(None, [2]), CpuMemory(), guard)
    try:
        yield checks
    finally:
        checks.close()


def check(answers: Answers, by: Checkers, value: int = 0, side: int = 8) -> Check:
    return Check(np.full((side, side, 3), value, dtype=np.uint8), BUCKET, by, answers.put)


def test_what_waits_is_checked_together_in_order_and_only_with_its_like() -> None:
    counting, answers = Counting(), Answers()
    by = checkers(counting)
    plan = MemoryPlan(None, [2])
    with queue(plan) as checks:
        checks.put(check(answers, by, 0))
        assert counting.reached.wait(LONG)
        for value in range(1, BATCH + 3):
            checks.put(check(answers, by, value))
        checks.put(check(answers, by, 77, side=16))
        counting.gate.set()
        found = answers.wait_for(BATCH + 4)
    assert counting.batches == [1, BATCH, 2, 1]
    assert [each.score for each in found if isinstance(each, Finding)] == [*range(BATCH + 3), 77]
    assert {rows for _, _, rows in plan.figures()} == {1, 2, BATCH}


def test_a_check_that_fails_fails_its_images_by_the_policy() -> None:
    answers = Answers()
    with queue() as checks:
        checks.put(check(answers, checkers(Broken(), "required")))
        checks.put(check(answers, checkers(Broken(), "report")))
        failed, told = answers.wait_for(2)
    assert isinstance(failed, SafetyCheckFailed)
    assert told == Finding("unchecked")


def test_a_check_that_hangs_fails_its_images_and_all_others_until_it_returns() -> None:
    Hanging.released.clear()
    answers = Answers()
    try:
        with queue() as checks:
            checks.put(check(answers, checkers(Hanging(), timeout_s=0.01)))
            answers.wait_for(1)
            counting = Counting()
            counting.gate.set()
            checks.put(check(answers, checkers(counting)))
            assert all(isinstance(each, SafetyCheckFailed) for each in answers.wait_for(2))
            assert not counting.batches
            assert checks.is_alive
            Hanging.released.set()
            hanging = checks._hanging
            assert hanging is not None
            hanging.result(LONG)
            checks.put(check(answers, checkers(counting), 5))
            assert answers.wait_for(3)[2] == Finding("passed", "c", 5.0)
    finally:
        Hanging.released.set()


def test_images_that_do_not_fit_in_memory_together_are_checked_one_by_one() -> None:
    counting, answers = Counting(), Answers()
    by = checkers(Full())
    with queue() as checks:
        checks.put(check(answers, checkers(counting)))
        assert counting.reached.wait(LONG)
        for _ in range(3):
            checks.put(check(answers, by))
        counting.gate.set()
        assert [type(each) for each in answers.wait_for(4)] == [Finding] * 4


def test_a_lost_device_ends_the_queue() -> None:
    answers, errors = Answers(), list[BaseException]()
    with queue(errors=errors) as checks:
        checks.put(check(answers, checkers(Lost())))
        checks._thread.join(LONG)
        assert not checks.is_alive
    assert [type(error) for error in errors] == [DeviceLost]
    assert not answers.found


@pytest.mark.parametrize("count", [1, 5])
def test_the_plan_counts_checks_beside_other_calls_of_that_model_only(count: int) -> None:
    plan = MemoryPlan(None, [2])
    other: Any = Bucket("other", 64, 64)
    for bucket in (BUCKET, other):
        plan.record_peak("denoise", bucket, 2, 1000)
        plan.record_peak("decode", bucket, count, 10)
    before = plan.call_bytes(BUCKET, 2, decode_batch=count)
    plan.record_peak("check", BUCKET, count, 100)
    assert plan.call_bytes(BUCKET, 2, decode_batch=count) == before + 100
    assert plan.call_bytes(other, 2, decode_batch=count) == before
