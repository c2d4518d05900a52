"""An HTTP client as a user would write one: it sends requests, retries a broken one once, and may leave."""

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import httpx

from bench.clients.goldens import Goldens, request_body
from bench.clients.history import Answer, History, Outcome, Sent
from bench.clients.load import Call
from serve_app.client import BASE, ServerEvent, parse_events

# By then a caller has given up, and calls its request lost.
PATIENCE_S = 90.0

# A client that repeats at once meets what just broke.
REPEATS_AFTER_S = 1.0


class Broken(Exception):
    """The server gave no answer: the connection broke, or the proxy sent an error page."""


@dataclass(frozen=True, slots=True)
class Received:
    """An answer and the picture's file that came with it, to be checked later."""

    answer: Answer
    file: bytes | None = None


class Caller:
    """All clients of one load. `clock` gives seconds since its start.

    `lags` are the seconds by which calls were sent after they were due: the load's own slowness, part of every time.
    """

    def __init__(self, http: httpx.AsyncClient, clock: Callable[[], float]) -> None:
        self._http = http
        self._clock = clock
        self._sent: list[Sent] = []
        self._received: list[Received] = []
        self._broken: list[str] = []
        self.lags: list[float] = []

    async def ask(self, call: Call) -> None:
        """Sends `call` and waits until it ends or its client leaves."""
        self.lags.append(self._clock() - call.at)
        self._sent.append(Sent(call.id, call.wanted, call.at, call.must_fail))
        try:
            async with asyncio.timeout(PATIENCE_S if call.stays is None else call.stays):
                await self._with_one_repeat(call)
        except TimeoutError:
            # A caller whose patience ended has no answer, which is what `lost` means.
            if call.stays is not None:
                self._received.append(Received(Answer(call.id, "cancelled", self._clock())))

    def history(self, goldens: Goldens) -> History:
        """Returns what has happened, with its pictures checked."""
        answers = [
            replace(one.answer, shows=goldens.name_of(one.file)) if one.file is not None else one.answer
            for one in self._received
        ]
        return History(list(self._sent), answers, list(self._broken))

    async def _with_one_repeat(self, call: Call) -> None:
        for repeats_left in (1, 0):
            try:
                self._received.extend(await self._once(call))
                return
            except Broken:
                self._broken.append(call.id)
            if repeats_left:
                await asyncio.sleep(REPEATS_AFTER_S)

    async def _once(self, call: Call) -> list[Received]:
        """Returns every end that the server gave the request. Raises Broken if it gave none."""
        headers = {"x-request-id": call.id, "accept": "text/event-stream" if call.delivery == "stream" else "*/*"}
        asked: Any = {"json": request_body(call.wanted), "headers": headers}
        try:
            async with self._http.stream("POST", f"{BASE}/text-to-image", **asked) as response:
                content = (await response.aread()).decode()
        except httpx.TransportError:
            raise Broken from None
        # Ray's proxy and the application set it both, and they must agree.
        name = ", ".join(dict.fromkeys(response.headers.get_list("x-request-id")))
        if response.is_error:
            return [self._error(name, _problem(response.status_code, content), "retry-after" in response.headers)]
        if call.delivery == "stream":
            return self._streamed(name, content)
        return self._answered(name, json.loads(content))

    def _answered(self, name: str, answer: dict[str, Any]) -> list[Received]:
        pictures = [self._picture(name, image) for image in answer["images"]]
        return pictures or [self._end(name, "failed", 200)]

    def _streamed(self, name: str, content: str) -> list[Received]:
        """Reads a stream. One that was cut off is no answer: its reader cannot know what would have come."""
        events: list[ServerEvent] = list(parse_events(content.split("\n")))
        if not events or events[-1].name not in ("done", "error"):
            raise Broken
        pictures = [self._picture(name, event.data) for event in events if event.name == "image"]
        errors = [self._error(name, event.data, event.data["retryable"]) for event in events if event.name == "error"]
        return [*pictures, *errors] or [self._end(name, "failed", 200)]

    def _picture(self, name: str, image: dict[str, Any]) -> Received:
        return Received(self._end(name, "succeeded", 200).answer, base64.b64decode(image["data"]))

    def _error(self, name: str, problem: dict[str, Any], retry_after: bool) -> Received:
        """Tells refusals, which may be sent again, from failures."""
        outcome: Outcome = "refused" if problem["retryable"] else "failed"
        return self._end(name, outcome, problem["status"], problem["error"]["code"], retry_after)

    def _end(self, name: str, outcome: Outcome, status: int, code: str = "", retry_after: bool = False) -> Received:
        return Received(Answer(name, outcome, self._clock(), None, status, code, retry_after))


def _problem(status: int, content: str) -> dict[str, Any]:
    """Returns the error's body. Raises Broken if it is not Darkroom's: the proxy has answered instead."""
    try:
        problem = json.loads(content)
    except ValueError:
        raise Broken from None
    if not isinstance(problem, dict) or not isinstance(problem.get("error"), dict):
        raise Broken
    return problem | {"status": status}
