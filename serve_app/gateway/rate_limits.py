"""How much each caller may ask for: requests and work in a minute, requests at once, work in one request.

Work is *cost*, in megapixel-steps: pixels x steps x images / 1,000,000, with every default filled in.
"""

from collections import Counter
from dataclasses import replace
from typing import Final, Literal

from serve_app.config.sections import Limits, LimitsConfig
from serve_app.gateway.sliding_window import Clock, Remaining, SlidingWindows
from serve_app.store.redis import RedisTier

LimitName = Literal["requests_per_minute", "concurrent_requests", "cost_per_minute"]

# Nobody can know when one of the caller's own requests will end.
_RETRY_S: Final = 1.0

_MEGA: Final = 1_000_000


class OverLimit(Exception):
    """The caller has had what it may have. `limit` of `name`; in `wait_s` seconds there may be room."""

    def __init__(self, name: LimitName, limit: int, wait_s: float) -> None:
        super().__init__(name)
        self.name, self.limit, self.wait_s = name, limit, wait_s


class TooCostly(Exception):
    """A single request of `cost`, where `limit` is the most: it will never be let in (both in megapixel-steps)."""

    def __init__(self, cost: float, limit: int) -> None:
        super().__init__("too costly")
        self.cost, self.limit = cost, limit


class RateLimits:
    """The limits of one ingress process. What is used in a minute is shared through Redis, if there is one.

    Requests at once are counted by each process for itself: a count that is shared would stay too high for ever where a
    process dies. `counts` gets `rate_limited` and `limits_degraded`.
    """

    def __init__(self, config: LimitsConfig, redis: RedisTier | None, counts: Counter[str], clock: Clock) -> None:
        self.config = config
        self.counts = counts
        self.running: Counter[str] = Counter()
        self.windows = SlidingWindows(redis, self._count_degraded, clock)

    def quota_of(self, caller: str, limits: Limits) -> "Quota":
        """A request of `caller`, which is nobody else's name, on its way in."""
        return Quota(self, caller, limits)

    def refuse(self, name: LimitName, limit: int, wait_s: float) -> OverLimit:
        """The refusal, counted."""
        self.counts["rate_limited"] += 1
        return OverLimit(name, limit, wait_s)

    def _count_degraded(self) -> None:
        self.counts["limits_degraded"] += 1


class Quota:
    """One request: `enter` before its body is read, `charge` when its cost is known, `leave` when it is answered.

    `remaining` are how its caller stands with each limit that was looked at, beside the limit itself.
    """

    def __init__(self, owner: RateLimits, caller: str, limits: Limits) -> None:
        self.limits = limits
        self.remaining: dict[LimitName, tuple[int, Remaining]] = {}
        self._owner, self._caller = owner, caller

    async def enter(self) -> None:
        """Takes a place, and a request of the minute's. Raises OverLimit, and has taken nothing then."""
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
        """Takes what the request costs of the minute's. Raises OverLimit, or TooCostly where it can never be let in."""
        cost, costliest = pixel_steps / _MEGA, self.limits.costliest
        if costliest is not None and cost > costliest:
            raise TooCostly(cost, costliest)
        if self.limits.cost_per_minute is not None:
            await self._take("cost_per_minute", pixel_steps, self.limits.cost_per_minute, _MEGA)

    async def charge_refused(self, pixel_steps: int) -> None:
        """Takes what reading in vain costs, or all that a minute has where that is less. Raises OverLimit."""
        limit = self.limits.cost_per_minute
        if limit is not None:
            await self._take("cost_per_minute", min(pixel_steps, limit * _MEGA), limit, _MEGA)

    def leave(self) -> None:
        """Gives the place back."""
        self._owner.running[self._caller] -= 1
        if not self._owner.running[self._caller]:
            del self._owner.running[self._caller]

    async def _take(self, name: LimitName, amount: int, limit: int, unit: int = 1) -> None:
        remaining = await self._owner.windows.take(f"{name}:{self._caller}", amount, limit * unit)
        self.remaining[name] = limit, replace(remaining, left=remaining.left // unit)
        if not remaining.taken:
            raise self._owner.refuse(name, limit, remaining.wait_s)
