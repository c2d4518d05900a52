"""The queue's laws, with a fake clock. No torch."""

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.params import GenerationParams, Priority
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.row import Ticket
from deployments.engine.scheduling.fair_order import PATIENCE
from deployments.engine.scheduling.queue import RequestQueue


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def request_of(
    name: str,
    images: int = 1,
    side: int = 64,
    guidance: float = 7.5,
    priority: Priority = "normal",
    tenant: str = "",
) -> Request:
    params = GenerationParams(
        prompt=name,
        num_images=images,
        width=side,
        height=side,
        guidance_scale=guidance,
        seed=0,
        model_name="m",
        priority=priority,
    )
    return Request(name, params, tenant=tenant)


def enter(queue: RequestQueue, request: Request, cost: float = 0.0) -> None:
    """`request` arrives, and is prepared."""
    queue.enqueue(request, cost)
    arrival = queue.pop_arrival()
    assert arrival is not None
    queue.add(arrival)


def tickets(queue: RequestQueue, room: int) -> Iterator[Ticket]:
    """What the queue hands out while `room` rows are free in each bucket."""
    used: Counter[Bucket] = Counter()
    for ticket in queue.take(lambda request: room - used[request.bucket]):
        used[ticket.request.bucket] += ticket.request.unet_rows
        yield ticket


def take_all(queue: RequestQueue, room: int) -> list[tuple[str, int]]:
    return [(ticket.request.id, ticket.index) for ticket in tickets(queue, room)]


def names(queue: RequestQueue, room: int = 1000) -> list[str]:
    return [name for name, _ in take_all(queue, room)]


def test_first_come_first_served() -> None:
    clock = Clock()
    queue = RequestQueue(10, clock)
    for name in "abc":
        enter(queue, request_of(name))
        clock.now += 1
    assert take_all(queue, room=4) == [("a", 0), ("b", 0)]
    assert [(request.id, images) for request, images in queue.snapshot().predict_order()] == [("c", 1)]


def test_requests_of_one_moment_keep_their_order() -> None:
    queue = RequestQueue(10, Clock())
    for name in "abc":
        enter(queue, request_of(name))
    assert names(queue) == ["a", "b", "c"]


def test_a_request_without_guidance_takes_half_the_room() -> None:
    queue = RequestQueue(10, Clock())
    enter(queue, request_of("cheap", images=4, guidance=1.0))
    assert len(take_all(queue, room=4)) == 4


def test_a_large_request_does_not_have_to_fit_at_once() -> None:
    queue = RequestQueue(10, Clock())
    enter(queue, request_of("many", images=3))
    assert take_all(queue, room=2) == [("many", 0)]
    assert len(queue) == 1
    assert take_all(queue, room=4) == [("many", 1), ("many", 2)]
    assert len(queue) == 0


def test_sizes_do_not_wait_for_each_other() -> None:
    queue = RequestQueue(10, Clock())
    for name, side in (("a", 64), ("b", 64), ("c", 128)):
        enter(queue, request_of(name, side=side))
    assert take_all(queue, room=2) == [("a", 0), ("c", 0)]


def test_what_waits_is_counted_in_seconds_image_by_image() -> None:
    queue = RequestQueue(10, Clock())
    queue.enqueue(request_of("unprepared", images=2), cost=6.0)
    assert queue.seconds == 6.0
    enter(queue, request_of("waiting", images=4), cost=8.0)
    assert queue.seconds == 14.0
    handed = list(tickets(queue, room=2))
    assert len(handed) == 1
    assert queue.seconds == 14.0 - (3.0 if handed[0].request.id == "unprepared" else 2.0)
    queue.remove("unprepared")
    queue.remove("waiting")
    assert queue.seconds == 0.0


def test_a_higher_priority_goes_first() -> None:
    queue = RequestQueue(10, Clock())
    order: tuple[Priority, ...] = ("low", "normal", "high")
    for priority in order:
        enter(queue, request_of(priority, priority=priority))
    assert names(queue) == ["high", "normal", "low"]


def test_nobody_who_comes_after_its_patience_goes_before_a_low_one() -> None:
    clock = Clock()
    queue = RequestQueue(100, clock)
    enter(queue, request_of("low", priority="low"))
    started = clock.now
    for second in range(1, 300):
        clock.now += 1
        enter(queue, request_of(f"high {second}", priority="high"))
        (name,) = names(queue, room=2)
        if name == "low":
            break
    assert clock.now - started == PATIENCE["low"]


def test_one_tenants_flood_does_not_starve_another() -> None:
    clock = Clock()
    queue = RequestQueue(1000, clock)
    for i in range(100):
        enter(queue, request_of(f"flood {i}", tenant="loud"), cost=1.0)
    served: Counter[str] = Counter()
    for i in range(20):
        enter(queue, request_of(f"quiet {i}", tenant="quiet"), cost=1.0)
    for _ in range(40):
        (ticket,) = tickets(queue, room=2)
        served[ticket.request.tenant] += 1
        clock.now += 1.0
    assert served == {"loud": 20, "quiet": 20}


def test_a_tenant_that_comes_late_does_not_wait_for_the_flood_before_it() -> None:
    clock = Clock()
    queue = RequestQueue(1000, clock)
    for i in range(100):
        enter(queue, request_of(f"flood {i}", tenant=f"loud {i % 3}"), cost=1.0)
    for _ in range(30):
        assert names(queue, room=2)
        clock.now += 1.0
    enter(queue, request_of("late", tenant="quiet"), cost=1.0)
    before = 0
    while names(queue, room=2) != ["late"]:
        before += 1
        clock.now += 1.0
    assert before <= 3


def test_tenants_share_by_cost_and_not_by_count() -> None:
    clock = Clock()
    queue = RequestQueue(1000, clock)
    for i in range(60):
        enter(queue, request_of(f"long {i}", tenant="long"), cost=5.0)
        enter(queue, request_of(f"short {i}", tenant="short"), cost=1.0)
    seconds: Counter[str] = Counter()
    for _ in range(60):
        (ticket,) = tickets(queue, room=2)
        cost = 5 if ticket.request.tenant == "long" else 1
        seconds[ticket.request.tenant] += cost
        clock.now += cost
    assert 0.7 <= seconds["long"] / seconds["short"] <= 1.4


def test_a_tenants_own_old_requests_age_too() -> None:
    clock = Clock()
    queue = RequestQueue(1000, clock)
    enter(queue, request_of("old", priority="low"), cost=1.0)
    for i in range(300):
        enter(queue, request_of(f"new {i}", priority="high"), cost=1.0)
        (name,) = names(queue, room=2)
        clock.now += 1.0
        if name == "old":
            return
    pytest.fail("it was never served")


def test_short_work_passes_long_work_of_the_same_moment() -> None:
    queue = RequestQueue(10, Clock())
    for name, cost in (("long", 9.0), ("short", 1.0), ("middle", 3.0)):
        enter(queue, request_of(name), cost)
    assert names(queue) == ["short", "middle", "long"]


def test_long_work_is_passed_for_no_longer_than_it_costs() -> None:
    clock = Clock()
    queue = RequestQueue(100, clock)
    enter(queue, request_of("long"), cost=10.0)
    passed = 0
    for i in range(50):
        clock.now += 1.0
        enter(queue, request_of(f"short {i}"), cost=1.0)
        if names(queue, room=2) == ["long"]:
            break
        passed += 1
    assert passed == 8


def test_shortest_first_lowers_the_mean_wait() -> None:
    costs = [8.0, 1.0, 5.0, 1.0, 3.0, 1.0]

    def mean_wait(ordered: list[float]) -> float:
        return sum(sum(ordered[:i]) for i in range(len(ordered))) / len(ordered)

    queue = RequestQueue(10, Clock())
    for i, cost in enumerate(costs):
        enter(queue, request_of(str(i)), cost)
    assert mean_wait([costs[int(name)] for name in names(queue)]) < 0.6 * mean_wait(costs)


def test_a_full_queue_refuses() -> None:
    queue = RequestQueue(1, Clock())
    queue.enqueue(request_of("a"))
    with pytest.raises(Overloaded, match="1 requests"):
        queue.enqueue(request_of("b"))


def test_a_flood_leaves_places_for_others() -> None:
    queue = RequestQueue(100, Clock())
    for i in range(75):
        queue.enqueue(request_of(f"flood {i}", tenant="loud"))
    with pytest.raises(Overloaded, match="75 of your requests"):
        queue.enqueue(request_of("one more", tenant="loud"))
    queue.enqueue(request_of("another", tenant="quiet"))
    assert len(queue) == 76


def test_what_has_arrived_counts_and_waits_for_its_preparation() -> None:
    queue = RequestQueue(2, Clock())
    queue.enqueue(request_of("a", images=3))
    assert (len(queue), queue.images, queue.unet_rows) == (1, 3, 0)
    assert take_all(queue, room=9) == []
    queue.enqueue(request_of("b"))
    with pytest.raises(Overloaded):
        queue.check_room()
    first = queue.pop_arrival()
    assert first is not None
    queue.add(first)
    assert (len(queue), queue.images, queue.unet_rows) == (2, 4, 6)
    assert queue.remove("b")
    assert queue.pop_arrival() is None


def test_who_goes_first_is_prepared_first() -> None:
    queue = RequestQueue(9, Clock())
    queue.enqueue(request_of("low", priority="low"))
    queue.enqueue(request_of("high", priority="high"))
    first = queue.pop_arrival()
    assert first is not None
    assert first.request.id == "high"


def test_removing_what_is_not_there_is_no_error() -> None:
    queue = RequestQueue(1, Clock())
    assert queue.remove("nobody") is None
    assert take_all(queue, room=9) == []


def test_the_order_that_is_foretold_is_the_order_that_comes() -> None:
    clock = Clock()
    queue = RequestQueue(100, clock)
    priorities: tuple[Priority, ...] = ("low", "normal", "high")
    for i in range(30):
        enter(queue, request_of(str(i), priority=priorities[i % 3], tenant=str(i % 4)), cost=float(1 + i % 5))
    foretold = [request.id for request, _ in queue.snapshot().predict_order()]
    came = []
    while waiting := list(queue.snapshot().predict_order()):
        (name,) = names(queue, room=2)
        came.append(name)
        clock.now += next(float(1 + int(request.id) % 5) for request, _ in waiting if request.id == name)
    assert came == foretold


def test_only_a_high_image_takes_a_low_ones_place() -> None:
    queue = RequestQueue(9, Clock())
    enter(queue, request_of("low", priority="low"))
    enter(queue, request_of("normal"))
    running = list(tickets(queue, room=4))
    bucket = running[0].request.bucket
    enter(queue, request_of("another"))
    assert queue.choose_victims(bucket, running, lambda _: 0) == []
    enter(queue, request_of("urgent", priority="high"))
    assert [ticket.request.id for ticket in queue.choose_victims(bucket, running, lambda _: 0)] == ["low"]
    assert queue.choose_victims(bucket, running, lambda _: 2) == []
    assert queue.choose_victims(bucket, [t for t in running if t.request.id == "normal"], lambda _: 0) == []


def test_who_has_waited_long_enough_keeps_its_place() -> None:
    clock = Clock()
    queue = RequestQueue(9, clock)
    enter(queue, request_of("low", priority="low"))
    running = list(tickets(queue, room=2))
    clock.now += PATIENCE["low"] + 1
    enter(queue, request_of("urgent", priority="high"))
    assert queue.choose_victims(running[0].request.bucket, running, lambda _: 0) == []


def test_who_made_way_comes_back_at_its_old_rank() -> None:
    clock = Clock()
    queue = RequestQueue(9, clock)
    enter(queue, request_of("first", priority="low"))
    (ticket,) = tickets(queue, room=2)
    clock.now += 1
    enter(queue, request_of("second", priority="low"))
    queue.requeue(ticket)
    assert queue.images == 2
    assert names(queue) == ["first", "second"]


@given(
    images=st.lists(st.integers(1, 5), max_size=12),
    removed=st.sets(st.integers(0, 11)),
    room=st.integers(2, 9),
)
def test_nothing_is_lost_and_nothing_comes_twice(images: list[int], removed: set[int], room: int) -> None:
    queue = RequestQueue(100, Clock())
    for i, count in enumerate(images):
        enter(queue, request_of(str(i), images=count, side=64 if i % 2 else 128))
    for i in removed:
        queue.remove(str(i))
    out: list[tuple[str, int]] = []
    while more := take_all(queue, room):
        out += more
    expected = {(str(i), k) for i, count in enumerate(images) if i not in removed for k in range(count)}
    assert len(out) == len(expected)
    assert set(out) == expected
    assert len(queue) == 0


class AnyHistory(RuleBasedStateMachine):
    """Requests come, are prepared, handed out, paused, cancelled and finished in any order."""

    requests = Bundle("requests")

    @initialize(limit=st.integers(1, 8))
    def begin(self, limit: int) -> None:
        self.clock = Clock()
        self.limit = limit
        self.queue = RequestQueue(limit, self.clock)
        self.waiting: set[tuple[str, int]] = set()
        self.running: dict[tuple[str, int], Ticket] = {}
        self.count = 0

    @rule(
        target=requests,
        images=st.integers(1, 3),
        priority=st.sampled_from(("low", "normal", "high")),
        tenant=st.sampled_from(("", "a", "b")),
        side=st.sampled_from((64, 128)),
        cost=st.floats(0, 100),
    )
    def enqueue(self, images: int, priority: Priority, tenant: str, side: int, cost: float) -> str:
        self.count += 1
        request = request_of(str(self.count), images, side, priority=priority, tenant=tenant)
        try:
            self.queue.enqueue(request, cost)
        except Overloaded:
            assert self.queue.__len__() > 0
        else:
            self.waiting |= {(request.id, index) for index in range(images)}
        return request.id

    @rule()
    def prepare(self) -> None:
        arrival = self.queue.pop_arrival()
        if arrival is not None:
            self.queue.add(arrival)

    @rule(room=st.integers(0, 6))
    def take(self, room: int) -> None:
        for ticket in tickets(self.queue, room):
            key = (ticket.request.id, ticket.index)
            assert key not in self.running
            self.waiting.remove(key)
            self.running[key] = ticket

    @rule()
    def preempt(self) -> None:
        for bucket in (Bucket("m", 64, 64), Bucket("m", 128, 128)):
            mine = [ticket for ticket in self.running.values() if ticket.request.bucket == bucket]
            for ticket in self.queue.choose_victims(bucket, mine, lambda _: 0):
                assert ticket.request.params.priority == "low"
                del self.running[ticket.request.id, ticket.index]
                self.queue.requeue(ticket)
                self.waiting.add((ticket.request.id, ticket.index))

    @rule(name=consumes(requests))
    def cancel(self, name: str) -> None:
        mine = {key for key in self.waiting if key[0] == name}
        assert (self.queue.remove(name) is not None) == bool(mine)
        self.waiting -= mine
        self.running = {key: ticket for key, ticket in self.running.items() if key[0] != name}

    @rule()
    def finish(self) -> None:
        self.running.clear()

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def nothing_is_lost_and_bounds_hold(self) -> None:
        if hasattr(self, "queue"):
            assert self.queue.images == len(self.waiting)
            assert len(self.queue) <= self.limit
            assert sum(images for _, images in self.queue.snapshot().predict_order()) == len(self.waiting)


TestAnyHistory = AnyHistory.TestCase
