"""One caller's limits: concurrent places, requests and cost, each its own; nothing is charged for a refused request."""

from collections import Counter

import pytest

from serve_app.config.sections import Limits, LimitsConfig
from serve_app.gateway.rate_limits import OverLimit, RateLimits, TooCostly
from tests.serve_app.gateway.test_sliding_window import Clock

MEGA = 1_000_000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limits(clock: Clock) -> RateLimits:
    return RateLimits(LimitsConfig(), None, Counter(), clock)


async def test_a_place_is_free_again_when_its_request_has_left(limits: RateLimits) -> None:
    one = Limits(concurrent_requests=1)
    first = limits.quota_of("a", one)
    await first.enter()
    with pytest.raises(OverLimit) as caught:
        await limits.quota_of("a", one).enter()
    assert caught.value.name == "concurrent_requests"
    await limits.quota_of("b", one).enter()
    first.leave()
    await limits.quota_of("a", one).enter()
    assert limits.counts["rate_limited"] == 1


async def test_a_request_refused_for_the_minute_holds_no_place(limits: RateLimits) -> None:
    both = Limits(requests_per_minute=1, concurrent_requests=2)
    await limits.quota_of("a", both).enter()
    for _ in range(3):
        with pytest.raises(OverLimit) as caught:
            await limits.quota_of("a", both).enter()
        assert caught.value.name == "requests_per_minute"
    assert limits.running == {"a": 1}


async def test_work_is_counted_apart_from_requests(limits: RateLimits) -> None:
    settings = Limits(requests_per_minute=5, cost_per_minute=10)
    quota = limits.quota_of("a", settings)
    await quota.enter()
    await quota.charge(7 * MEGA)
    with pytest.raises(OverLimit) as caught:
        await limits.quota_of("a", settings).charge(7 * MEGA)
    assert (caught.value.name, caught.value.limit) == ("cost_per_minute", 10)
    assert {name: (limit, now.left) for name, (limit, now) in quota.remaining.items()} == {
        "requests_per_minute": (5, 4),
        "cost_per_minute": (10, 3),
    }


@pytest.mark.parametrize("named", [{"max_cost": 4}, {"cost_per_minute": 4}, {"max_cost": 4, "cost_per_minute": 9}])
async def test_what_can_never_be_let_in_is_not_told_to_come_back(limits: RateLimits, named: dict[str, int]) -> None:
    with pytest.raises(TooCostly) as caught:
        await limits.quota_of("a", Limits(**named)).charge(5 * MEGA)
    assert (caught.value.cost, caught.value.limit) == (5, 4)


def test_a_keys_own_limits_replace_single_ones() -> None:
    every = Limits(requests_per_minute=60, concurrent_requests=4, max_cost=100)
    own = Limits(requests_per_minute=600, max_cost=None)
    assert every.with_overrides(own) == Limits(requests_per_minute=600, concurrent_requests=4)
