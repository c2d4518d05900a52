"""What callers ask for, and when: the same for every contender, and as mixed as it is said to be."""

from collections import Counter
from itertools import pairwise
from statistics import mean, pstdev

import numpy as np
import pytest

from bench.engine.workload import kind_of, like
from bench.online.messages import message_to_darkroom, message_to_peer, read_request
from bench.online.traffic import KINDS, SAMPLERS, SIDES, Arrival, checked_requests, draw_traffic, warm_up_requests
from bench.online.unloaded import FLOOR_S, read_unloaded
from deployments.engine.protocol.request import Request


def asked(traffic: list[Arrival]) -> list[tuple[float, object]]:
    return [(one.at, one.request.params) for one in traffic]


def test_equal_seeds_draw_equal_traffic() -> None:
    assert asked(draw_traffic(2.0, 20.0, 1)) == asked(draw_traffic(2.0, 20.0, 1))
    assert asked(draw_traffic(2.0, 20.0, 1)) != asked(draw_traffic(2.0, 20.0, 2))


def test_requests_come_at_random_within_the_window() -> None:
    """Gaps are as spread as their mean, which those of evenly spaced requests are not."""
    times = [one.at for one in draw_traffic(20.0, 50.0, 1)]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) == 1000
    assert 0.0 <= times[0] < times[-1] <= 50.0
    assert pstdev(gaps) == pytest.approx(mean(gaps), rel=0.1)


def test_every_minute_has_the_same_mix() -> None:
    requests = [one.request for one in draw_traffic(2.0, 50.0, 1)]
    sides = Counter(request.params.width for request in requests)
    assert Counter(map(kind_of, requests)) == {kind: 100 * KINDS.count(kind) // len(KINDS) for kind in KINDS}
    assert sides == {side: 100 * SIDES.count(side) // len(SIDES) for side in SIDES}
    assert {request.params.sampler for request in requests} == set(SAMPLERS)


def test_no_cache_can_answer_but_some_requests_can_be_merged() -> None:
    requests = [one.request for one in draw_traffic(4.0, 40.0, 1)]
    assert len({(request.params.prompt, request.params.seed) for request in requests}) == len(requests)
    assert len(like(requests)) < len(requests)


def test_warming_up_touches_every_kind_and_size() -> None:
    shapes = {(kind_of(request), request.params.width) for request in warm_up_requests()}
    assert shapes == {(kind, side) for kind in KINDS for side in SIDES}


@pytest.mark.parametrize("request_", checked_requests().values(), ids=checked_requests())
def test_a_peer_reads_the_request_that_was_sent(request_: Request) -> None:
    read = read_request(message_to_peer(request_).options["json"])
    sent, got = request_.params, read.params
    assert (got.prompt, got.seed, got.sampler, got.strength) == (sent.prompt, sent.seed, sent.sampler, sent.strength)
    assert (got.width, got.height, got.guidance_scale) == (sent.width, sent.height, sent.guidance_scale)
    for name in ("image", "mask"):
        ours, theirs = getattr(request_.inputs, name), getattr(read.inputs, name)
        assert (ours is None and theirs is None) or np.array_equal(ours, theirs)


def test_darkroom_is_told_how_long_the_caller_waits() -> None:
    request = checked_requests()["text-to-image"]
    assert message_to_darkroom(request, 2.5).options["json"]["deadline_ms"] == 2500
    assert "deadline_ms" not in message_to_darkroom(request, None).options["json"]


def test_a_deadline_is_four_times_the_requests_own_time_and_never_less_than_two_seconds() -> None:
    request = checked_requests()["text-to-image"]
    shape = "text-to-image 128 guided"
    slow = read_unloaded({"fixed": {shape: 0.1}, "step": {shape: 0.5}})
    quick = read_unloaded({"fixed": {shape: 0.1}, "step": {shape: 0.01}})
    assert slow.deadline_s(request) == pytest.approx(4 * (0.1 + 12 * 0.5))
    assert quick.deadline_s(request) == FLOOR_S
