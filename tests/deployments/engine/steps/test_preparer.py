"""The thread that prepares requests: when it counts as alive."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

import pytest

from deployments.engine.heartbeat import FLOOR_SECONDS, Heartbeat
from deployments.engine.ip_adapter import adapters as ip_adapters_module
from deployments.engine.ip_adapter.adapter import IpAdapter
from deployments.engine.ip_adapter.adapters import IpAdapters
from deployments.engine.lora.rows.adapter_cache import AdapterCache
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.request import Request
from deployments.engine.scheduling.fair_order import Arrival
from deployments.engine.scheduling.forecast import Forecast
from deployments.engine.similar.state_reuse import StateReuse
from deployments.engine.steps import preparer as preparer_module
from deployments.engine.steps.preparer import Preparer
from tests.deployments.engine.harness import request_for
from tests.deployments.engine.ip_adapter.tiny_ip_adapters import with_images
from tests.deployments.engine.test_kinds import picture


class Clock:
    """Stands still until it is told the time."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def preparer_of(clock: Clock, on_done: Callable[[], object]) -> Preparer:
    """A preparer of requests without LoRAs."""
    adapters = AdapterCache(None, lambda _model: pytest.fail("nothing is adapted"), lambda: ())
    return Preparer(on_done, (1,), lambda _bucket: ((), 1), adapters, StateReuse(0, 0.0), Heartbeat(clock))


def begin(preparer: Preparer, model: LoadedModel, request: Request) -> None:
    foreseen: Future[Forecast] = Future()
    foreseen.set_result(Forecast(0.0, (), {}, 0, 0.0))
    preparer.begin(Arrival(request, 0.0, 1.0), model, foreseen)


def test_what_is_prepared_and_not_collected_yet_is_no_stall(tiny_model: LoadedModel) -> None:
    clock, done = Clock(), threading.Event()
    preparer = preparer_of(clock, done.set)
    begin(preparer, tiny_model, request_for(tiny_model, "first"))
    assert done.wait(60)
    # The engine's thread collects between two steps, and a step may take minutes.
    clock.now = 10 * FLOOR_SECONDS
    assert preparer.is_alive
    assert len(list(preparer.collect(wait=True))) == 1
    preparer.close()


def test_a_preparation_that_never_ends_is_a_stall(tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, entered, go_on = Clock(), threading.Event(), threading.Event()

    def hang(*_given: object) -> None:
        entered.set()
        go_on.wait(60)
        raise RuntimeError("enough")

    monkeypatch.setattr(preparer_module, "prepare", hang)
    preparer = preparer_of(clock, lambda: None)
    begin(preparer, tiny_model, request_for(tiny_model, "first"))
    assert entered.wait(60)
    lived = [preparer.is_alive]
    clock.now = 2 * FLOOR_SECONDS
    lived.append(preparer.is_alive)
    go_on.set()
    assert len(list(preparer.collect(wait=True))) == 1
    assert [*lived, preparer.is_alive] == [True, False, True]
    preparer.close()


def test_an_adapter_that_could_not_be_loaded_is_not_loaded_again_by_the_thread_of_all(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ip_adapters_module, "RETRY_S", 0.0)
    tried: list[str] = []

    def fail(name: str) -> IpAdapter:
        tried.append(name)
        raise ModelLoadError("injected: the hub is out of reach")

    model = replace(tiny_model, ip_adapters=IpAdapters(("mine",), fail))
    done = threading.Event()
    preparer = preparer_of(Clock(), done.set)
    begin(preparer, model, with_images(request_for(model, "x"), [picture(4)], adapter="mine"))
    assert done.wait(60)
    (failed,) = preparer.collect(wait=True)
    assert isinstance(failed.future.exception(), ModelLoadError)
    assert tried == ["mine"]
    preparer.close()
