"""The queue's laws. No torch here."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.errors import Overloaded
from deployments.engine.params import GenerationParams
from deployments.engine.queue import Queue
from deployments.engine.row import Bucket, Request


def asked(name: str, images: int = 1, side: int = 64, guidance: float = 7.5) -> Request:
    params = GenerationParams(
        prompt=name, num_images=images, width=side, height=side, guidance_scale=guidance, seed=0, model_name="m"
    )
    return Request(name, params)


def taken(queue: Queue, room: int) -> list[tuple[str, int]]:
    """What the queue hands out while `room` rows are free in each bucket."""
    used: Counter[Bucket] = Counter()
    out = []
    for ticket in queue.take(lambda bucket: room - used[bucket]):
        used[ticket.request.bucket] += ticket.request.unet_rows
        out.append((ticket.request.id, ticket.index))
    return out


def test_first_come_first_served() -> None:
    queue = Queue(limit=10)
    assert [queue.add(asked(name)) for name in "abc"] == [0, 1, 2]
    assert taken(queue, room=4) == [("a", 0), ("b", 0)]
    assert list(queue.positions()) == [("c", 0)]


def test_a_request_without_guidance_takes_half_the_room() -> None:
    queue = Queue(limit=10)
    queue.add(asked("cheap", images=4, guidance=1.0))
    assert len(taken(queue, room=4)) == 4


def test_a_large_request_does_not_have_to_fit_at_once() -> None:
    queue = Queue(limit=10)
    queue.add(asked("many", images=3))
    assert taken(queue, room=2) == [("many", 0)]
    assert len(queue) == 1
    assert taken(queue, room=4) == [("many", 1), ("many", 2)]
    assert len(queue) == 0


def test_sizes_do_not_wait_for_each_other() -> None:
    queue = Queue(limit=10)
    for name, side in (("a", 64), ("b", 64), ("c", 128)):
        queue.add(asked(name, side=side))
    assert taken(queue, room=2) == [("a", 0), ("c", 0)]


def test_a_full_queue_refuses() -> None:
    queue = Queue(limit=1)
    queue.arrive(asked("a"))
    with pytest.raises(Overloaded, match="1 requests"):
        queue.arrive(asked("b"))


def test_what_has_arrived_counts_and_waits_for_its_preparation() -> None:
    queue = Queue(limit=2)
    queue.arrive(asked("a", images=3))
    assert (len(queue), queue.images, queue.unet_rows) == (1, 3, 0)
    assert taken(queue, room=9) == []
    queue.arrive(asked("b"))
    with pytest.raises(Overloaded):
        queue.check_room()
    first = queue.next_arrival()
    assert first is not None
    assert queue.add(first.request) == 0
    assert (len(queue), queue.images, queue.unet_rows) == (2, 4, 6)
    assert queue.remove("b")
    assert queue.next_arrival() is None


def test_removing_what_is_not_there_is_no_error() -> None:
    queue = Queue(limit=1)
    assert not queue.remove("nobody")
    assert taken(queue, room=9) == []


@given(
    images=st.lists(st.integers(1, 5), max_size=12),
    removed=st.sets(st.integers(0, 11)),
    room=st.integers(2, 9),
)
def test_nothing_is_lost_and_nothing_comes_twice(images: list[int], removed: set[int], room: int) -> None:
    queue = Queue(limit=100)
    for i, count in enumerate(images):
        queue.add(asked(str(i), images=count, side=64 if i % 2 else 128))
    for i in removed:
        queue.remove(str(i))
    out: list[tuple[str, int]] = []
    while more := taken(queue, room):
        out += more
    expected = {(str(i), k) for i, count in enumerate(images) if i not in removed for k in range(count)}
    assert len(out) == len(expected)
    assert set(out) == expected
    assert len(queue) == 0
