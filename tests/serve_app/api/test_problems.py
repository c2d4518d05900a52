"""Errors over HTTP."""

import inspect
import math
import pickle
from typing import Any

import pytest

from deployments.engine.protocol import errors
from deployments.engine.protocol.errors import (
    DeadlineExceeded,
    EngineError,
    EngineLost,
    EngineStopped,
    GenerationFailed,
    InvalidParameter,
    ModelLoadError,
    Overloaded,
    Quarantined,
)
from serve_app.api.problems import SHOULD_RETRY, Problem, internal_error, problem_of


@pytest.mark.parametrize(
    ("estimate", "said"),
    [(None, "2"), (0.0, "1"), (0.2, "1"), (7.01, "8"), (7.0, "7"), (500.0, "120"), (math.inf, "120"), (math.nan, "1")],
)
def test_retry_after_is_the_estimate_in_whole_seconds_within_bounds(estimate: float | None, said: str) -> None:
    problem = problem_of(Overloaded("full", estimate))
    assert (problem.status, problem.headers["Retry-After"]) == (503, said)


@pytest.mark.parametrize(
    ("problem", "advice"),
    [
        (problem_of(Overloaded("full")), "true"),
        (problem_of(EngineStopped("gone")), "true"),
        (problem_of(GenerationFailed("no")), "false"),
        (problem_of(DeadlineExceeded("late")), "false"),
        (problem_of(ModelLoadError("broken")), "false"),
        (internal_error(), "false"),
        (Problem(429, "rate_limited", "later", retry_after=3), "true"),
        (Problem(409, "idempotency_conflict", "later", retry_after=2), "true"),
        (problem_of(InvalidParameter("n", "no")), None),
        (Problem(408, "request_timeout", "slow"), None),
    ],
    ids=lambda value: value.code if isinstance(value, Problem) else value,
)
def test_clients_that_repeat_by_themselves_are_told_whether_to(problem: Problem, advice: str | None) -> None:
    """What they would not repeat, and a slow body, which may be faster the next time, is left to them."""
    assert problem.response("r").headers.get(SHOULD_RETRY) == advice


def test_a_quarantined_request_is_the_callers_and_not_to_be_repeated() -> None:
    problem = problem_of(Quarantined("no"))
    assert (problem.status, problem.code, problem.retryable) == (422, "quarantined", False)
    assert "Retry-After" not in problem.headers


def test_a_lost_engine_is_a_stopped_one_to_callers() -> None:
    assert problem_of(EngineLost("gone")).body("r") == problem_of(EngineStopped("gone")).body("r")


def test_every_error_survives_pickling_with_all_that_it_says() -> None:
    kinds: list[Any] = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    for kind in kinds:
        takes = inspect.signature(kind).parameters
        error = kind(**{name: "what happened" if name == "message" else 3.5 for name in takes})
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert vars(again) == vars(error)
        assert isinstance(again, EngineError)
