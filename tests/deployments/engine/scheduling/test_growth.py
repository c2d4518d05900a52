"""What the engine does beside its networks takes as long with thousands of requests in the queue as with a hundred.

Counted in calls of functions, Python's and C's, so that a busy machine changes nothing.
"""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from deployments.engine.protocol.request import Request
from deployments.engine.scheduling.forecast import Forecast
from deployments.engine.scheduling.order_simulation import FORESEEN
from tests.deployments.engine.scheduling.test_starvation import SECONDS, Player, request_of

FEW, MANY = 4 * FORESEEN, 32 * FORESEEN
TURNS = 20

GROWS_BY = 1.3
"""Heaps take a few more steps when they hold eight times as much: the logarithm of it."""


def calls_of(action: Callable[[], object]) -> int:
    """Returns how many functions `action` calls."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


def player_with(waiting: int, tenants: int = 1) -> Player:
    """Returns an engine without a device in which all places are taken and so many requests wait."""
    player = Player(limit=10 * waiting)
    for number in range(waiting):
        assert player.enqueue(mixed_request(number, tenants))
    for _ in range(8):
        player.turn()
    return player


def mixed_request(number: int, tenants: int = 1) -> Request:
    priority = ("normal", "high", "low")[number % 3]
    side = (64, 128)[number % 2]
    return request_of(f"request {number}", priority, f"tenant {number % tenants}", 4 + number % 7, side=side)  # type: ignore[arg-type]


def forecast_of(player: Player) -> Forecast:
    return player.admission.forecast_inputs(player.running).forecast()


def turns_of(player: Player) -> None:
    """Lets the engine step, as if a request had been prepared, or a forecast were due, in every step."""
    for _ in range(TURNS):
        player.turn()
        player.now += SECONDS
        assert len(forecast_of(player).order) == FORESEEN


@pytest.mark.parametrize("tenants", [1, 3])
def test_a_step_beside_many_waiting_requests_calls_no_more_than_beside_few(tenants: int) -> None:
    few, many = player_with(FEW, tenants), player_with(MANY, tenants)
    assert calls_of(lambda: turns_of(many)) < GROWS_BY * calls_of(lambda: turns_of(few))


def test_taking_in_a_request_calls_no_more_if_many_wait() -> None:
    few, many = player_with(FEW), player_with(MANY)
    new = [request_of(f"new {number}", "normal", "tenant 0") for number in range(20)]
    assert calls_of(lambda: [many.enqueue(each) for each in new]) < GROWS_BY * calls_of(
        lambda: [few.enqueue(each) for each in new]
    )


def test_what_is_too_far_back_to_be_foreseen_is_said_to_come_last() -> None:
    player = player_with(FEW)
    last = request_of("last", "low", "tenant 0")
    assert player.enqueue(last)
    cost = player.admission.estimator.cost(last)
    forecast = forecast_of(player)
    position, estimate = forecast.place_of(last, cost)
    assert position == len(player.admission.queue) - 1
    assert estimate.finish > max(forecast.estimates[each.id].finish for each in forecast.order)
    assert estimate.finish == pytest.approx(estimate.start + cost)


def test_what_comes_and_leaves_behind_one_that_waits_leaves_nothing() -> None:
    """Callers who give up must not fill a line's memory while its first request still waits."""
    player = Player(limit=10)
    assert player.enqueue(request_of("stays", "high", "tenant 0"))
    for number in range(2000):
        player.enqueue(request_of(f"leaves {number}", "low", "tenant 0"))
        player.admission.queue.remove(f"leaves {number}")
    lines = player.admission.queue._arrived._lines["tenant 0"].values()
    assert sum(len(line._due) + len(line._undue) for line in lines) < 100
