"""What may begin, by memory: nothing that does not fit now, nothing refused that fits later, and never nothing at all.

The bytes are made up; rows have no tensors.
"""

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deployments.engine.protocol.errors import DoesNotFit
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.settings import ControlSettings
from deployments.engine.scheduling.admission import Admission
from deployments.engine.scheduling.memory_plan import RESERVE
from deployments.engine.scheduling.running import RunningRows
from deployments.engine.stack_size import Adapted
from tests.deployments.engine.scheduling.test_starvation import NoMemory, request_of, row_of

SIZES = (1, 2, 4, 8)
SIDE, OTHER = 128, 64
"""Two sizes; calls of the other one take a quarter."""

WEIGHTS, PER_ROW = 1000, 100
LIMIT = WEIGHTS + 8 * PER_ROW
"""Weights, and one full call."""


class SharedMemory(NoMemory):
    """A device on which `more` bytes are taken for a while."""

    budget: Any = round(LIMIT / (1 - RESERVE)) + 1
    more = 0

    def held_bytes(self, counted: int) -> int:
        return counted + self.more


@dataclass
class FakeAdapters:
    """LoRAs of which `unused` bytes can leave, and those of prepared requests, by their ids: bytes of a group."""

    unused: int = 0
    groups: dict[str, int] = field(default_factory=dict)

    def count_bytes(self) -> int:
        return self.unused

    def find_prepared(self, request_id: str) -> Adapted | None:
        loras = None
        if request_id in self.groups:
            group_bytes = Counter({"layer": self.groups[request_id]})
            loras = SimpleNamespace(uses=(request_id,), group_bytes=group_bytes)
        return cast(Adapted, SimpleNamespace(request=request_of(request_id, "normal"), loras=loras, reference=None))

    def evict_unused(self) -> None:
        self.unused = 0


class Door:
    """An admission whose rows begin as they are admitted."""

    def __init__(self, adapters: FakeAdapters | None = None) -> None:
        self.memory, self.adapters = SharedMemory(), adapters or FakeAdapters()
        self.admission = Admission(32, SIZES, self.memory, 1, lambda: 0.0, self.adapters)
        self.admission.set_weight_bytes(WEIGHTS)
        self.running = RunningRows()
        for rows in (1, 2):
            self.admission.plan.record_peak("denoise", plain("any").bucket, rows, rows * PER_ROW)

    def enqueue(self, *requests: Request) -> None:
        for request in requests:
            self.admission.enqueue(request)
            arrival = self.admission.queue.pop_arrival()
            assert arrival is not None
            self.admission.queue.add(arrival)

    def begin(self) -> list[str]:
        """The requests that begin now."""
        begun = []
        for ticket in self.admission.admit(self.running):
            row = row_of(ticket)
            prepared = self.adapters.find_prepared(ticket.request.id)
            row.loras = None if prepared is None else prepared.loras
            self.running.add(row)
            begun.append(ticket.request.id)
        return begun

    def end(self, request_id: str) -> None:
        self.running.drop(lambda row: row.request.id == request_id)


def exact(name: str) -> Request:
    request = plain(name)
    return Request(name, request.params.model_copy(update={"exact": True}))


def plain(name: str, side: int = SIDE, scale: float = 7.5) -> Request:
    return request_of(name, "normal", side=side, scale=scale)


def test_what_does_not_fit_now_waits_and_only_what_never_can_is_refused() -> None:
    door = Door()
    door.enqueue(plain("small", side=OTHER))
    assert door.begin() == ["small"]
    door.memory.more = LIMIT
    door.enqueue(plain("large"))
    assert door.begin() == []
    door.memory.more = 0
    assert door.begin() == ["large"]
    with pytest.raises(DoesNotFit):
        door.enqueue(plain("huge", side=512))


def test_where_nothing_runs_the_first_that_waits_begins_whatever_is_held() -> None:
    door = Door()
    door.memory.more = LIMIT
    door.enqueue(plain("a"), plain("b"))
    assert door.begin() == ["a"]
    door.end("a")
    assert door.begin() == ["b"]


def test_loras_that_nobody_uses_leave_before_what_waits_is_held_up_by_them() -> None:
    door = Door(FakeAdapters(unused=LIMIT))
    door.enqueue(plain("a"), plain("b"))
    assert door.begin() == ["a", "b"]
    assert door.adapters.unused == 0


@pytest.mark.parametrize("ran_out", [1, 2, 8])
def test_a_size_that_ran_out_keeps_nobody_from_what_he_needs_alone(ran_out: int) -> None:
    door = Door()
    request = plain("guided")
    door.admission.plan.record_out_of_memory(request.bucket, ran_out)
    door.enqueue(plain("elsewhere", side=OTHER), request, exact("exact"), plain("unguided", scale=1.0))
    begun = door.begin()
    assert "elsewhere" in begun
    for each in begun:
        door.end(each)
    while later := door.begin():
        begun += later
        for each in later:
            door.end(each)
    assert sorted(begun) == ["elsewhere", "exact", "guided", "unguided"]


def test_an_exact_row_begins_only_where_its_call_fits() -> None:
    door = Door()
    door.enqueue(plain("before", side=OTHER))
    assert door.begin() == ["before"]
    door.memory.more = 5 * PER_ROW
    door.enqueue(exact("exact"))
    assert door.begin() == []
    # Smaller ones would take for ever what it waits for.
    door.enqueue(plain("behind", side=OTHER))
    assert door.begin() == []
    door.memory.more = 0
    assert door.begin() == ["exact", "behind"]


def test_the_controlnets_of_an_exact_row_are_counted_at_the_size_of_its_call() -> None:
    door, request = Door(), exact("exact")
    params = request.params.model_copy(update={"controls": (ControlSettings(type="canny"),)})
    # Of two rows it would just fit beside a full call, of eight it does not.
    door.admission.plan.budget = round((LIMIT + 4 * PER_ROW) / (1 - RESERVE))
    door.admission.plan.record_peak("control", request.bucket, 1, PER_ROW)
    door.enqueue(request)
    with pytest.raises(DoesNotFit):
        door.enqueue(Request("controlled", params))
    door.enqueue(Request("not exact", params.model_copy(update={"exact": False})))


def test_nothing_joins_an_exact_row_where_its_call_would_not_fit_any_more() -> None:
    door = Door()
    door.enqueue(exact("exact"))
    assert door.begin() == ["exact"]
    door.memory.more = 5 * PER_ROW
    door.enqueue(plain("beside"))
    assert door.begin() == []
    door.memory.more = 0
    assert door.begin() == ["beside"]


def test_loras_are_counted_before_their_row_begins_and_for_the_rows_beside_it() -> None:
    # Alone its stack has one group; beside another image each has one.
    door = Door(FakeAdapters(groups={"changed": 3 * PER_ROW}))
    door.enqueue(plain("a"), plain("changed"), plain("elsewhere", side=OTHER))
    assert door.begin() == ["a", "elsewhere"]
    door.end("a")
    assert door.begin() == ["changed"]
    door.enqueue(plain("b"))
    assert door.begin() == []
    door.end("changed")
    assert door.begin() == ["b"]


def test_the_stacks_of_another_size_are_counted_as_long_as_its_rows_run() -> None:
    door = Door(FakeAdapters(groups={"changed": 7 * PER_ROW}))
    door.enqueue(plain("changed", side=OTHER))
    assert door.begin() == ["changed"]
    door.enqueue(plain("other"))
    assert door.begin() == []
    door.end("changed")
    assert door.begin() == ["other"]
