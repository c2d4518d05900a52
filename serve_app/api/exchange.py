"""One request and its answer, from the first byte to the last: what every layer may know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from starlette.types import Scope

from deployments.engine.protocol.events import Timings
from serve_app.observability.request_stats import Outcome

# They import problems, which note their codes here.
if TYPE_CHECKING:
    from serve_app.api.principal import Principal
    from serve_app.gateway.rate_limits import Quota

CLIENT_LEFT: Final = 499
"""What nginx logs for it. The answer reaches nobody."""


@dataclass(slots=True)
class Exchange:
    """`principal` is who asks, None where no keys are configured; `quota` what it may ask for, None without limits.

    The rest is for the request's line in the log: `code` is that of the error it was answered with, `left` says that
    its client did not stay.
    """

    request_id: str = ""
    principal: Principal | None = None
    quota: Quota | None = None
    code: str = ""
    left: bool = False
    model: str = ""
    prompt: str = ""
    timings: Timings | None = None

    def outcome(self, status: int) -> Outcome:
        """What became of it: in the words of the statistics, but of every request that HTTP brought."""
        if self.left or status == CLIENT_LEFT:
            return "cancelled"
        if self.code == "internal_error":
            return "broken"
        return "refused" if self.code or status >= 400 else "finished"


def exchange_of(scope: Scope) -> Exchange:
    """The exchange with that ASGI scope, made by whichever layer asks first."""
    exchange: Exchange = scope.setdefault("state", {}).setdefault("exchange", Exchange())
    return exchange
