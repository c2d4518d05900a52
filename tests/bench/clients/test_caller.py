"""What a client makes of what it gets: good answers, broken ones, and none."""

import base64
import io
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from bench.clients import caller
from bench.clients.caller import Caller
from bench.clients.goldens import Goldens
from bench.clients.history import History
from bench.clients.load import Call

RED = np.full((8, 8, 3), (200, 0, 0), dtype=np.int16)
BLUE = np.full((8, 8, 3), (0, 0, 200), dtype=np.int16)
GOLDENS = Goldens({"cup": RED, "star": BLUE})

Server = Callable[[httpx.Request], httpx.Response]


def image(pixels: Any = RED) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return {"index": 0, "data": base64.b64encode(buffer.getvalue()).decode()}


def headers(request: httpx.Request) -> dict[str, str]:
    return {"x-request-id": request.headers["x-request-id"]}


def answered(request: httpx.Request, *images: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json={"images": images}, headers=headers(request))


def streamed(request: httpx.Request, *events: tuple[str, dict[str, Any]]) -> httpx.Response:
    text = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
    return httpx.Response(200, text=text, headers=headers(request))


def problem(request: httpx.Request, status: int, retryable: bool) -> httpx.Response:
    more = {"retry-after": "2"} if retryable else {}
    body = {"status": status, "error": {"code": "a_code"}, "retryable": retryable}
    return httpx.Response(status, json=body, headers=headers(request) | more)


async def asked(server: Server, call: Call) -> History:
    started = time.monotonic()
    async with httpx.AsyncClient(base_url="http://test", transport=httpx.MockTransport(server)) as http:
        one = Caller(http, lambda: time.monotonic() - started)
        await one.ask(call)
        return one.history(GOLDENS)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "REPEATS_AFTER_S", 0.01)
    monkeypatch.setattr(caller, "PATIENCE_S", 0.5)


async def test_a_picture_is_judged_by_what_it_shows() -> None:
    history = await asked(lambda request: answered(request, image(BLUE)), Call("r", 0.0, "cup"))
    (answer,) = history.answers
    assert (answer.id, answer.outcome, answer.shows) == ("r", "succeeded", "star")


async def test_a_picture_that_is_a_little_off_shows_nothing() -> None:
    history = await asked(lambda request: answered(request, image(RED + 2)), Call("r", 0.0, "cup"))
    assert history.answers[0].shows is None


async def test_a_picture_that_comes_twice_is_two_answers() -> None:
    events = [("image", image()), ("image", image()), ("done", {})]
    history = await asked(lambda request: streamed(request, *events), Call("r", 0.0, "cup", "stream"))
    assert [answer.outcome for answer in history.answers] == ["succeeded", "succeeded"]


@pytest.mark.parametrize(("status", "retryable", "outcome"), [(503, True, "refused"), (500, False, "failed")])
async def test_refused_is_what_may_be_asked_again(status: int, retryable: bool, outcome: str) -> None:
    history = await asked(lambda request: problem(request, status, retryable), Call("r", 0.0, "cup"))
    (answer,) = history.answers
    assert (answer.outcome, answer.retry_after, answer.code) == (outcome, retryable, "a_code")


def breaks_once(broken: Callable[[httpx.Request], httpx.Response]) -> Server:
    seen: list[str] = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["x-request-id"])
        return broken(request) if len(seen) == 1 else answered(request, image())

    return server


def cut_off(request: httpx.Request) -> httpx.Response:
    raise httpx.RemoteProtocolError("the peer closed the connection", request=request)


@pytest.mark.parametrize("broken", [cut_off, lambda _: httpx.Response(500, text="Internal Server Error")])
async def test_a_broken_connection_is_tried_once_more_and_counted(broken: Server) -> None:
    history = await asked(breaks_once(broken), Call("r", 0.0, "cup"))
    assert [answer.outcome for answer in history.answers] == ["succeeded"]
    assert history.broken == ["r"]


async def test_what_breaks_twice_has_no_answer() -> None:
    history = await asked(cut_off, Call("r", 0.0, "cup"))
    assert history.answers == []
    assert history.broken == ["r", "r"]


async def test_a_stream_without_an_end_is_broken() -> None:
    """Its picture does not count, or the repeated one would be a second."""
    history = await asked(lambda request: streamed(request, ("image", image())), Call("r", 0.0, "cup", "stream"))
    assert history.answers == []
    assert history.broken == ["r", "r"]


async def never(_: httpx.Request) -> httpx.Response:
    import asyncio

    await asyncio.sleep(60)
    raise AssertionError


@pytest.mark.parametrize(("stays", "outcomes"), [(0.05, ["cancelled"]), (None, [])])
async def test_who_leaves_has_an_end_and_who_is_left_waiting_has_none(stays: float | None, outcomes: list[str]) -> None:
    history = await asked(never, Call("r", 0.0, "cup", stays=stays))  # type: ignore[arg-type]
    assert [answer.outcome for answer in history.answers] == outcomes


def test_goldens_that_could_be_taken_for_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="'cup' and 'near-cup' differ by 10/255 only"):
        Goldens({"cup": RED, "near-cup": RED + 10, "star": BLUE})
