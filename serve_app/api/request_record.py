"""What is noted of a request while it is answered, for its line in the log."""

from dataclasses import dataclass

from starlette.types import Scope

from deployments.engine.protocol.events import Timings
from serve_app.observability.request_stats import Outcome

# What nginx logs for it. The answer reaches nobody.
CLIENT_LEFT = 499


@dataclass(slots=True)
class RequestRecord:
    """One request's. `code` is that of the error it was answered with; `left`, that its client did not stay."""

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


def record_of(scope: Scope) -> RequestRecord:
    """The entry of the request with that ASGI scope."""
    entry: RequestRecord = scope.setdefault("state", {}).setdefault("entry", RequestRecord())
    return entry
