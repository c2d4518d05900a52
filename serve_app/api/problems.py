"""Errors over HTTP: one table from error class to status, and one body for all of them.

The body is problem+json (RFC 9457) with an `error` object as OpenAI's clients expect it. It never contains the caller's
input, a path, or another library's text.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from deployments.engine.protocol.errors import (
    Cancelled,
    DeadlineExceeded,
    DoesNotFit,
    EngineError,
    EngineStopped,
    Filtered,
    GenerationFailed,
    InvalidParameter,
    ModelLoadError,
    Overloaded,
    Quarantined,
    SafetyCheckFailed,
    UnknownModel,
)
from serve_app.api.exchange import exchange_of

MEDIA_TYPE = "application/problem+json"

# As in nginx, and gRPC's CANCELLED over HTTP. No client retries it by itself.
CLIENT_CLOSED = 499

# The header that OpenAI's clients obey before their own rules.
SHOULD_RETRY = "X-Should-Retry"

# What such clients would repeat by themselves, whatever it was, besides every error of the server.
_REPEATED = frozenset((409, 429))

# A longer estimate is worthless: the queue, or the number of replicas, will have changed by then.
MAX_RETRY_AFTER = 120


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake in a request. `pointer` is a JSON pointer into the body, or `?name` for a query parameter."""

    pointer: str
    code: str
    message: str


class Problem(Exception):
    """An error answer. `param` is the public name of the offending field, if there is one.

    `kind` is the `type` that OpenAI's clients read.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        faults: tuple[Fault, ...] = (),
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.faults = faults
        self.retryable = retry_after is not None
        self.kind = "invalid_request_error" if status < 500 else "server_error"
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    def body(self, request_id: str) -> dict[str, Any]:
        """The problem+json object."""
        return {
            "type": f"urn:darkroom:problem:{self.code}",
            "title": _title_of(self.status),
            "status": self.status,
            "detail": self.message,
            "instance": f"urn:darkroom:request:{request_id}",
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            },
            "errors": [asdict(fault) for fault in self.faults],
            "request_id": request_id,
            "retryable": self.retryable,
        }

    def relocate(self, place: str) -> "Problem":
        """The same problem, where the body that it is about is nested at `place` in a larger one."""
        param = f"{place}/{self.param}" if self.param else place
        faults = tuple(
            replace(fault, pointer=f"#/{place}{fault.pointer.removeprefix('#').rstrip('/')}") for fault in self.faults
        )
        moved = Problem(self.status, self.code, self.message, param=param, faults=faults, headers=self.headers)
        moved.retryable = self.retryable
        return moved

    def response(self, request_id: str) -> "ProblemResponse":
        """The complete response."""
        return ProblemResponse(self, request_id)


class ProblemResponse(JSONResponse):
    """Sends a problem, and leaves its code in the request's record for the log, whoever sends it."""

    def __init__(self, problem: Problem, request_id: str) -> None:
        super().__init__(problem.body(request_id), problem.status, problem.headers | _retry_advice(problem), MEDIA_TYPE)
        self._code = problem.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).code = self._code
        await super().__call__(scope, receive, send)


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """The answer to a class of errors. `message` replaces the error's own where that one is for operators only.

    `retry_after` (seconds) applies where the error itself does not know better.
    """

    status: int
    retry_after: int | None = None
    message: str | None = None


# The nearest class in the error's MRO applies.
RULES: Mapping[type[EngineError], ErrorRule] = MappingProxyType(
    {
        InvalidParameter: ErrorRule(422),
        UnknownModel: ErrorRule(404),
        Overloaded: ErrorRule(503, retry_after=2),
        EngineStopped: ErrorRule(503, retry_after=5),
        DeadlineExceeded: ErrorRule(504),
        Cancelled: ErrorRule(CLIENT_CLOSED),
        # The requested size is too large for this server; a smaller one may fit.
        DoesNotFit: ErrorRule(422),
        # The request's own content is refused, so 4xx; not 409 or 429, which clients retry by themselves, nor 403,
        # which makes them look for other credentials.
        Quarantined: ErrorRule(422),
        ModelLoadError: ErrorRule(503, message="the model could not be loaded; the server's log says why"),
        # It was made, and is kept back: another prompt or seed may do, the same request will not.
        Filtered: ErrorRule(422),
        SafetyCheckFailed: ErrorRule(503, retry_after=30),
        GenerationFailed: ErrorRule(500),
        EngineError: ErrorRule(500),
    }
)


def problem_of(error: EngineError) -> Problem:
    """`error` as an error answer."""
    rule = next(RULES[kind] for kind in type(error).__mro__ if kind in RULES)
    message = rule.message or error.message
    field = error.field if isinstance(error, InvalidParameter) else None
    faults = (Fault(pointer_to(field), error.code, message),) if field else ()
    retry_after = rule.retry_after
    if isinstance(error, Overloaded) and error.retry_after is not None:
        retry_after = whole_seconds(error.retry_after)
    return Problem(rule.status, error.code, message, param=field, faults=faults, retry_after=retry_after)


def _retry_advice(problem: Problem) -> dict[str, str]:
    """Says whether a repetition may succeed, where clients would repeat what cannot: a storm of the same failure."""
    if problem.status < 500 and problem.status not in _REPEATED:
        return {}
    return {SHOULD_RETRY: "true" if problem.retryable else "false"}


def _title_of(status: int) -> str:
    return "Client Closed Request" if status == CLIENT_CLOSED else HTTPStatus(status).phrase


def whole_seconds(estimate: float) -> int:
    """Rounds an estimate up to whole seconds for `Retry-After`, within 1 and `MAX_RETRY_AFTER`."""
    return math.ceil(min(MAX_RETRY_AFTER, max(1, estimate)))


def internal_error() -> Problem:
    """The answer to an unexpected error; the log has the details under the same request id."""
    return Problem(500, "internal_error", "something went wrong here; quote the request id when you report it")


def pointer_to(field: str | None) -> str:
    """The JSON pointer to a field of the body, given by its path, or to the whole body."""
    return f"#/{field}" if field else "#"


def http_problem(status: int, headers: Mapping[str, str] | None) -> Problem:
    """The answer to an error of HTTP itself: an unknown route, a wrong method. Keeps `Allow`."""
    code, message = {
        404: ("not_found", "there is no such endpoint"),
        405: ("method_not_allowed", "this endpoint does not know that method"),
    }.get(status, ("http_error", HTTPStatus(status).phrase))
    return Problem(status, code, message, headers=headers)
