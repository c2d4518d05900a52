"""Forecasts are made beside the engine's thread, and say what they would say if it made them itself."""

import threading
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.events import Accepted, Progress
from deployments.engine.protocol.params import Priority
from deployments.engine.protocol.request import Request
from deployments.engine.scheduling import forecast_inputs
from deployments.engine.scheduling.forecast import forecast
from deployments.engine.scheduling.forecaster import Forecaster
from deployments.engine.scheduling.order_simulation import QueueSnapshot
from deployments.engine.worker.warm_up import warm_up
from tests.deployments.engine.harness import Tape, engine_of, request_for
from tests.deployments.engine.scheduling.test_starvation import SECONDS, Player, request_of

PRIORITIES: tuple[Priority, ...] = ("normal", "high", "low")


@pytest.fixture
def simulating(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads on which the queue and the rows were played forward."""
    threads: list[str] = []

    def record(function: Any) -> Any:
        def recorded(*arguments: Any) -> Any:
            threads.append(threading.current_thread().name)
            return function(*arguments)

        return recorded

    monkeypatch.setattr(forecast_inputs, "forecast", record(forecast))
    monkeypatch.setattr(QueueSnapshot, "predict_order", record(QueueSnapshot.predict_order))
    return threads


def test_the_engines_thread_makes_no_forecast(tiny_model: LoadedModel, simulating: list[str]) -> None:
    tape = Tape()
    with closing(engine_of(tiny_model, tape, max_rows=4)) as engine:
        warm_up(engine)
        for name in "abcdefgh":
            engine.submit(request_for(tiny_model, name, num_inference_steps=30, deadline_ms=600_000))
        engine.drain()
    assert all(tape.of(name, Accepted) for name in "abcdefgh")
    assert any(event.position > 0 for name in "abcdefgh" for event in tape.of(name, Progress))
    assert len(simulating) > 16
    assert all(name.startswith("forecast") for name in simulating)


def test_what_happens_after_a_forecast_was_asked_for_does_not_change_it() -> None:
    player = Player(limit=100)
    for number in range(40):
        assert player.enqueue(request_of(f"{number}", PRIORITIES[number % 3], f"{number % 2}", images=2))
        player.turn()
    inputs = player.admission.forecast_inputs(player.running)
    forecast = inputs.forecast()
    for number in range(40, 60):
        player.enqueue(request_of(f"{number}", "high"))
        player.admission.remove(f"{number - 30}")
        player.turn()
    assert inputs.forecast() == forecast
    assert player.admission.forecast_inputs(player.running).forecast() != forecast


def deadlines(player: Player) -> list[Request]:
    """Requests of two sizes and all priorities that come at once, of which not all can be in time."""
    requests = [
        request_of(f"{number}", PRIORITIES[number % 3], f"{number % 2}", side=(64, 128)[number % 2])
        for number in range(90)
    ]
    for each in requests[:2]:
        player.admission.costs.record_call(each.bucket, 2, 0, SECONDS)
    return [
        replace(each, params=each.params.model_copy(update={"deadline_ms": 20_000 + 5_000 * (number % 7)}))
        for number, each in enumerate(requests)
    ]


def test_deadlines_are_judged_as_if_each_were_checked_before_the_next_request_came() -> None:
    """What will be refused is not counted against those that came after it."""
    at_once, one_by_one = find_late(waits=False), find_late(waits=True)
    assert at_once == one_by_one
    assert 10 < len(at_once) < 80


def find_late(waits: bool) -> dict[str, str]:
    """What those are told that cannot be in time; if it `waits`, they are gone before the next one comes."""
    player = Player(limit=1000)
    late: dict[str, str] = {}
    checked = threading.Semaphore(0)
    with closing(Forecaster(player.admission, checked.release, lambda: player.now)) as forecaster:
        for request in deadlines(player):
            forecaster.check_deadline(player.admission.enqueue(request), player.running)
            if waits:
                checked.acquire()
                refuse_late(forecaster, player, late)
        forecaster.foresee(player.running).result()
        refuse_late(forecaster, player, late)
    return late


def refuse_late(forecaster: Forecaster, player: Player, late: dict[str, str]) -> None:
    for request, error in forecaster.find_late():
        player.admission.remove(request.id)
        late[request.id] = error.message


def test_a_request_that_left_meanwhile_is_not_refused_nor_is_one_of_its_name() -> None:
    player = Player()
    (request,) = deadlines(player)[:1]
    soon = replace(request, params=request.params.model_copy(update={"deadline_ms": 1}))
    with closing(Forecaster(player.admission, lambda: None, lambda: player.now)) as forecaster:
        forecaster.check_deadline(player.admission.enqueue(soon), player.running)
        player.admission.remove(soon.id)
        assert player.enqueue(request)
        assert forecaster.foresee(player.running).result().order == [request]
        assert not list(forecaster.find_late())
