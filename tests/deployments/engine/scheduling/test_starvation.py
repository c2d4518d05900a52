"""Nothing starves, whatever the others send: the queue, admission and the device's share, with a fake clock.

What `Engine.step` does is done here with rows that have no tensors: prepare one, admit, preempt, step one bucket.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.params import GenerationParams, Priority
from deployments.engine.protocol.request import Request
from deployments.engine.row import Row, Ticket
from deployments.engine.scheduling.admission import MAX_FULL_CALLS, Admission
from deployments.engine.scheduling.bucket_share import WEIGHTS, BucketShare
from deployments.engine.scheduling.device import Meter
from deployments.engine.scheduling.fair_order import LEAD, PATIENCE
from deployments.engine.scheduling.running import RunningRows

SIZES = (2, 4)
SECONDS = 1.0
"""Of a UNet call, whatever its rows: a slow device keeps the number of steps small."""

NO_BYTES = SimpleNamespace(nbytes=0)


class NoMemory:
    """Nobody counts."""

    budget = None
    is_metering_free = False

    def held_bytes(self, counted: int) -> int:
        return counted

    def unused_bytes(self) -> int:
        return 0

    def meter(self) -> AbstractContextManager[Meter]:
        return nullcontext(Meter())

    def release(self) -> None: ...


@dataclass
class Life:
    """When a request came, when its first image began, and when its last was done; and how often it was paused."""

    came: float
    due: float
    began: float | None = None
    ended: float | None = None
    paused: list[float] = field(default_factory=list)
    left: int = 0


class Player:
    """An engine without a device. A step takes what costs foresee, times `pace`."""

    def __init__(self, pace: float = 1.0, limit: int = 32) -> None:
        self.now = 1000.0
        self.pace = pace
        self.admission = Admission(limit, SIZES, NoMemory(), 1, lambda: self.now)
        self.running = RunningRows()
        self.lives: dict[str, Life] = {}
        self.requests: dict[str, Request] = {}
        self.most_rows = 0
        self.turns = 0
        self._share = BucketShare()

    def enqueue(self, request: Request) -> bool:
        """Whether there was room for it."""
        for size in SIZES:
            self.admission.costs.record_call(request.bucket, size, 0, SECONDS)
        try:
            self.admission.enqueue(request)
        except Overloaded:
            return False
        due = self.now + PATIENCE[request.params.priority] + self.admission.estimator.cost(request)
        self.lives[request.id] = Life(self.now, due, left=request.params.num_images)
        self.requests[request.id] = request
        return True

    def turn(self) -> None:
        """As `Engine.step`; a second goes by where there is nothing to do."""
        self.turns += 1
        arrival = self.admission.queue.pop_arrival()
        if arrival is not None:
            self.admission.queue.add(arrival)
        self._begin()
        for ticket in self.admission.preempt(self.running):
            self.lives[ticket.request.id].paused.append(self.now)
        self._begin()
        self.most_rows = max(self.most_rows, sum(row.request.unet_rows for row in self.running))
        bucket = self._share.choose(self.running.rows)
        if bucket is None:
            self.now += SECONDS
            return
        seconds = SECONDS * self.pace
        self.now += seconds
        rows = self.running.rows[bucket]
        for row in rows:
            row.step += 1
        self._share.charge(bucket, seconds, [self.admission.queue.priority_of(row.ticket) for row in rows])
        for row in self.running.drop(lambda row: row.is_done):
            life = self.lives[row.request.id]
            life.left -= 1
            life.ended = None if life.left else self.now

    def work(self) -> float:
        """The device's seconds for all that is here, if every image were made alone."""
        left = [(self.requests[name], life) for name, life in self.lives.items() if life.ended is None]
        return sum(life.left * request.evaluations for request, life in left) * SECONDS * self.pace

    def _begin(self) -> None:
        for ticket in self.admission.admit(self.running):
            row = self.admission.resume(ticket) or row_of(ticket)
            life = self.lives[ticket.request.id]
            life.began = self.now if life.began is None else life.began
            self.running.add(row)


def row_of(ticket: Ticket) -> Row:
    steps = cast(Any, range(ticket.request.evaluations))
    nothing = cast(Any, NO_BYTES)
    guided = range(ticket.request.evaluations if ticket.request.unet_rows > 1 else 0)
    return Row(ticket.request, ticket.index, steps, nothing, nothing, nothing, None, guided, due=ticket.due)


def request_of(
    name: str, priority: Priority, tenant: str = "", steps: int = 4, images: int = 1, side: int = 64, scale: float = 7.5
) -> Request:
    params = GenerationParams(
        prompt=name,
        num_images=images,
        num_inference_steps=steps,
        sampler="ddim",
        width=side,
        height=side,
        guidance_scale=scale,
        seed=0,
        model_name="m",
        priority=priority,
    )
    return Request(name, params, tenant=tenant)


Source = Callable[[int, float], list[Request]]


def play(player: Player, source: Source, seconds: float, until: str | None = None) -> None:
    """Lets `source` send, turn by turn, for so long, or until that request is done. It is given the turn's number."""
    begun = player.now
    while player.now - begun < seconds and (until is None or player.lives[until].ended is None):
        for request in source(player.turns, player.now):
            player.enqueue(request)
        player.turn()


def flood(priority: Priority, tenant: str = "", each: int = 2, **what: Any) -> Source:
    def source(number: int, _: float) -> list[Request]:
        return [request_of(f"{tenant} {priority} {number} {i}", priority, tenant, **what) for i in range(each)]

    return source


def test_a_low_request_behind_a_flood_of_high_ones_of_its_tenant_begins_when_it_is_due_and_is_not_paused() -> None:
    player = Player()
    play(player, flood("high"), 30)
    assert player.enqueue(request_of("low", "low"))
    play(player, flood("high"), 1000, until="low")
    low = player.lives["low"]
    assert low.began is not None
    assert low.ended is not None
    assert low.began <= low.due + 8 * SECONDS
    assert low.ended <= low.began + 8 * SECONDS
    assert not low.paused


def test_a_low_image_that_makes_way_goes_on_when_it_is_due() -> None:
    player = Player()
    assert player.enqueue(request_of("low", "low", steps=10))
    player.turn()
    play(player, flood("high"), 1000, until="low")
    low = player.lives["low"]
    assert low.ended is not None
    assert len(low.paused) == 1
    assert low.ended <= low.due + 20 * SECONDS


def test_all_images_of_a_request_come_one_after_another_once_the_first_has_begun() -> None:
    player = Player()
    assert player.enqueue(request_of("low", "low", "slow", images=4))
    play(player, flood("high", "other"), 2000, until="low")
    low = player.lives["low"]
    assert low.began is not None
    assert low.ended is not None
    assert low.began <= low.due + 8 * SECONDS
    # Two tenants take turns at two places.
    assert low.ended <= low.began + 4 * 2 * 8 * SECONDS


def test_what_is_not_prepared_yet_is_not_passed_by_shorter_work_for_ever() -> None:
    player = Player()
    assert player.enqueue(request_of("low", "low", steps=20))
    began = None
    for number in range(2000):
        player.enqueue(request_of(f"high {number}", "high", steps=1))
        arrival = player.admission.queue.pop_arrival()
        assert arrival is not None
        player.admission.queue.add(arrival)
        if arrival.request.id == "low":
            began = player.now
            break
        list(player.admission.queue.take(lambda _: 2))
        player.now += SECONDS
    assert began is not None
    assert began <= player.lives["low"].due + SECONDS


def test_what_its_tenant_gets_in_another_size_does_not_put_off_what_is_due() -> None:
    player = Player()
    theirs, own = flood("high", "other", each=1), flood("high", "mine", each=1, side=128)
    play(player, lambda n, now: [*theirs(n, now), *own(n, now)], 60)
    assert player.enqueue(request_of("low", "low", "mine"))
    play(player, lambda n, now: [*theirs(n, now), *own(n, now)], 3000, until="low")
    low = player.lives["low"]
    assert low.began is not None
    assert low.began <= low.due + LEAD


def test_ever_new_sizes_neither_fill_the_device_without_a_limit_nor_keep_an_old_one_waiting() -> None:
    player = Player()
    sides = [64 + 8 * i for i in range(100)]

    def source(number: int, _: float) -> list[Request]:
        return [request_of(f"{number} {i}", "high", "other", 1, side=sides[(3 * number + i) % 100]) for i in range(3)]

    play(player, source, 20)
    assert player.enqueue(request_of("low", "low", "mine", steps=10, side=1024))
    play(player, source, 3000, until="low")
    assert player.lives["low"].ended is not None
    assert player.most_rows <= MAX_FULL_CALLS * SIZES[-1]


priorities = st.sampled_from(("low", "normal", "high"))
tenants = st.sampled_from(("", "a", "b"))
sides = st.sampled_from((64, 72, 128, 192, 256, 320))
scales = st.sampled_from((1.0, 7.5))
works = st.tuples(priorities, tenants, st.integers(1, 12), st.integers(1, 4), sides, scales)
floods = st.lists(
    st.tuples(
        st.sampled_from(("normal", "high", "high")), tenants, st.integers(1, 12), st.integers(1, 4), sides, scales
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=25)
@given(
    before=st.lists(works, max_size=6),
    mine=works,
    after=floods,
    each=st.integers(1, 3),
    pace=st.floats(0.3, 3.0),
)
def test_a_request_begins_and_ends_within_its_bounds_whatever_the_others_send(
    before: list[tuple[Any, ...]], mine: tuple[Any, ...], after: list[tuple[Any, ...]], each: int, pace: float
) -> None:
    player = Player(pace)

    def made(what: tuple[Any, ...], name: str) -> Request:
        priority, tenant, steps, images, side, scale = what
        return request_of(name, priority, tenant, steps, images, side, scale)

    def source(number: int, _: float) -> list[Request]:
        return [made(after[(number * each + i) % len(after)], f"flood {number} {i}") for i in range(each)]

    for number, what in enumerate(before):
        player.enqueue(made(what, f"before {number}"))
    if before:
        play(player, source, 20 * SECONDS)
    if not player.enqueue(made(mine, "mine")):
        return
    life, request = player.lives["mine"], player.requests["mine"]
    # Nothing that comes after this moment goes before it, but for what other tenants are owed.
    last = life.due + max(life.due - life.came, LEAD)
    play(player, source, last - player.now, until="mine")
    # Whatever is here then may be made first; other sizes share the device meanwhile.
    bound = player.now + MAX_FULL_CALLS * WEIGHTS["high"] * player.work()
    play(player, source, bound - player.now + 1, until="mine")
    assert life.began is not None
    assert life.ended is not None
    assert life.ended <= bound
    assert all(at < life.due for at in life.paused)
    assert player.most_rows <= MAX_FULL_CALLS * SIZES[-1]
    own = [
        other
        for name, other in player.lives.items()
        if other.came > life.due
        and player.requests[name].tenant == request.tenant
        and player.requests[name].bucket == request.bucket
    ]
    assert all(other.began is None or other.began >= life.began for other in own)
