"""The `Idempotency-Key` header: a request that is sent again after its answer got lost is not run again."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any, Final

from fastapi import Request, Response

from deployments.engine.protocol.errors import EngineError
from serve_app.api.exchange import exchange_of
from serve_app.api.principal import principal_of
from serve_app.api.problems import Problem, problem_of
from serve_app.gateway.idempotency import Idempotency, InProgress, Reused
from serve_app.gateway.idempotency_store import IdempotentRequest, StoredResponse

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotent-Replayed"

# A quoted string, as the draft requires, or without quotes, as is common.
_KEY: Final = re.compile(r'"([\x20\x21\x23-\x5b\x5d-\x7e]{1,255})"|([\x21\x23-\x2b\x2d-\x5b\x5d-\x7e]{1,255})')

# The first request has an image to make.
_CONFLICT_S: Final = 2

# Retrying the same request may succeed.
_NOT_FINAL: Final = frozenset((408, 409, 425, 429))


async def run_once(
    request: Request,
    parameters: Mapping[str, Any],
    files: Iterable[bytes | None],
    work: Callable[[], Awaitable[Response]],
) -> Response:
    """Returns the answer of `work`, or its earlier answer if the request's Idempotency-Key has been used before.

    `parameters` (plain data) and `files` are the request as it was understood. These must be equal, not the bytes: a
    client that retries writes another boundary into a form, and may format its JSON differently. Raises Problem: 400
    for a malformed key, 409 while the first try is running, 422 for another request's key.
    """
    key = read_key(request)
    if key is None:
        return await work()
    store: Idempotency = request.app.state.idempotency
    fingerprint = await asyncio.to_thread(_fingerprint_of, request.method, request.url.path, parameters, files)
    try:
        lease = await store.begin(IdempotentRequest(_storage_name(principal_of(request).tenant, key), fingerprint))
    except InProgress:
        message = "the first request with this Idempotency-Key is still being worked on"
        raise Problem(409, "idempotency_conflict", message, retry_after=_CONFLICT_S) from None
    except Reused:
        message = "this Idempotency-Key belongs to another request; every request needs one of its own"
        raise Problem(422, "idempotency_key_reused", message) from None
    if isinstance(lease, StoredResponse):
        return _replay_response(lease)
    kept: StoredResponse | None = None
    try:
        response = await work()
        kept = await asyncio.to_thread(_store_response, response)
        return response
    except (EngineError, Problem) as error:
        problem = problem_of(error) if isinstance(error, EngineError) else error
        if problem.status < 500 and problem.status not in _NOT_FINAL:
            kept = _store_response(problem.response(exchange_of(request.scope).request_id))
        raise
    finally:
        await lease.release(kept)


def read_key(request: Request) -> str | None:
    """Returns the request's key, or None. Raises Problem 400 if it is malformed."""
    given = request.headers.getlist(HEADER)
    if not given:
        return None
    found = _KEY.fullmatch(given[0].strip()) if len(given) == 1 else None
    if found is None:
        message = f"{HEADER} must be there once, and have 1 to 255 plain characters, a UUID for example"
        raise Problem(400, "invalid_idempotency_key", message)
    return found[1] or found[2]


def refuse_key(request: Request) -> None:
    """Raises Problem 400 if the request has a key: for answers that cannot be repeated."""
    if read_key(request) is not None:
        message = f"a stream tells what is happening now, so it cannot have an {HEADER}; leave it out, or ask for JSON"
        raise Problem(400, "idempotency_not_supported", message)


def _storage_name(tenant: str, key: str) -> str:
    return sha256(json.dumps([tenant, key]).encode()).hexdigest()


def _fingerprint_of(method: str, path: str, parameters: Mapping[str, Any], files: Iterable[bytes | None]) -> bytes:
    digests = [None if file is None else sha256(file).hexdigest() for file in files]
    return sha256(json.dumps([method, path, parameters, digests], sort_keys=True).encode()).digest()


def _store_response(response: Response) -> StoredResponse:
    headers = tuple((name, value) for name, value in response.headers.items() if name != "content-length")
    return StoredResponse(response.status_code, headers, bytes(response.body))


def _replay_response(answer: StoredResponse) -> Response:
    return Response(answer.body, answer.status, {**dict(answer.headers), REPLAYED: "true"})
