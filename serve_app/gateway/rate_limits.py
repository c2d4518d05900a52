"""Limits for each caller: requests and cost per minute, concurrent requests, and the cost of one request.

*Cost* is in megapixel-steps: pixels x steps x images / 1,000,000, with every default filled in.
"""

from collections import Counter
from dataclasses import replace
from typing import Final, Literal

from serve_app.config.sections import Limits, LimitsConfig
from serve_app.gateway.sliding_window import Clock, Remaining, SlidingWindows
from serve_app.store.redis import RedisTier

LimitName = Literal["requests_per_minute", "concurrent_requests", "cost_per_minute"]

# A guess: when one of the caller's own requests will end is unknown.
_RETRY_S: Final = 1.0

_MEGA: Final = 1_000_000


class OverLimit(Exception):
    """The caller is over the `limit` of `name`; in `wait_s` seconds there may be room."""

    def __init__(self, name: LimitName, limit: int, wait_s: float) -> None:
        super().__init__(name)
        self.name, self.limit, self.wait_s = name, limit, wait_s


class TooCostly(Exception):
    """A single request costs `cost`, above the `limit` for one (both in megapixel-steps): it will never be admitted."""

    def __init__(self, cost: float, limit: int) -> None:
        super().__init__("too costly")
        self.cost, self.limit = cost, limit


class RateLimits:
    """The limits of one ingress process. Usage per minute is shared through Redis, if there is one.

    Concurrent requests are counted by each process for itself: a shared count would stay too high after a process died.
    `counts` gets `rate_limited` and `limits_degraded`.
    """

    def __init__(self, config: LimitsConfig, redis: RedisTier | None, counts: Counter[str], clock: Clock) -> None:
        self.config = config
        self.counts = counts
        self.running: Counter[str] = Counter()
        self.windows = SlidingWindows(redis, self._count_degraded, clock)

    def quota_of(self, caller: str, limits: Limits) -> "Quota":
        """The quota for one incoming request of `caller`, a name that nobody else has."""
        return Quota(self, caller, limits)

    def refuse(self, name: LimitName, limit: int, wait_s: float) -> OverLimit:
        """Counts a refusal and returns it."""
        self.counts["rate_limited"] += 1
        return OverLimit(name, limit, wait_s)

    def _count_degraded(self) -> None:
        self.counts["limits_degraded"] += 1


class Quota:
    """One request: `enter` before its body is read, `charge` once its cost is known, `leave` when it is answered.

    `remaining` has each limit that was checked, and what the caller has left of it.
    """

    def __init__(self, owner: RateLimits, caller: str, limits: Limits) -> None:
        self.limits = limits
        self.remaining: dict[LimitName, tuple[int, Remaining]] = {}
        self._owner, self._caller = owner, caller

    async def enter(self) -> None:
        """Takes a concurrent place and one of the minute's requests. Raises OverLimit, and has taken nothing then."""
        at_once = self.limits.concurrent_requests
        if at_once is not None and self._owner.running[self._caller] >= at_once:
            self.remaining["concurrent_requests"] = at_once, Remaining(False, 0, _RETRY_S)
            raise self._owner.refuse("concurrent_requests", at_once, _RETRY_S)
        self._owner.running[self._caller] += 1
        try:
            if self.limits.requests_per_minute is not None:
                await self._take("requests_per_minute", 1, self.limits.requests_per_minute)
        except BaseException:
            self.leave()
            raise

    async def charge(self, pixel_steps: int) -> None:
        """Takes the request's cost from the minute's. Raises OverLimit, or TooCostly if it can never be admitted."""
        cost, costliest = pixel_steps / _MEGA, self.limits.costliest
        if costliest is not None and cost > costliest:
            raise TooCostly(cost, costliest)
        if self.limits.cost_per_minute is not None:
            await self._take("cost_per_minute", pixel_steps, self.limits.cost_per_minute, _MEGA)

    async def charge_refused(self, pixel_steps: int) -> None:
        """Takes the cost of reading what was refused, or the whole minute's if that is less. Raises OverLimit."""
        limit = self.limits.cost_per_minute
        if limit is not None:
            await self._take("cost_per_minute", min(pixel_steps, limit * _MEGA), limit, _MEGA)

    def leave(self) -> None:
        """Gives the concurrent place back."""
        self._owner.running[self._caller] -= 1
        if not self._owner.running[self._caller]:
            del self._owner.running[self._caller]

    async def _take(self, name: LimitName, amount: int, limit: int, unit: int = 1) -> None:
        remaining = await self._owner.windows.take(f"{name}:{self._caller}", amount, limit * unit)
        self.remaining[name] = limit, replace(remaining, left=remaining.left // unit)
        if not remaining.taken:
            raise self._owner.refuse(name, limit, remaining.wait_s)
