"""The Accept header."""

import pytest
from starlette.requests import Request

from serve_app.api.parsing.negotiation import EVENTS, JSON, negotiate
from serve_app.api.problems import Problem

PNG, WEBP = "image/png", "image/webp"


def choose(*accept: str) -> str:
    headers = [(b"accept", value.encode("latin-1")) for value in accept]
    return negotiate(Request({"type": "http", "headers": headers}), [JSON, EVENTS, PNG, WEBP])


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/html, */*;q=0.8", JSON),
        ("application/json, text/event-stream", JSON),
        ("text/event-stream, application/json;q=0.9", EVENTS),
        ("text/event-stream, */*", EVENTS),
        ("text/*", EVENTS),
        ("image/*", PNG),
        ("image/webp, image/png;q=0.5", WEBP),
        ("IMAGE/PNG ; Q=1.0", PNG),
        ("image/*, image/png;q=0", WEBP),
        ("*/*, application/json;q=0.1", EVENTS),
        ("application/json;q=nonsense, image/png;q=0.1", PNG),
        ("garbage", JSON),
        (",,;;,", JSON),
    ],
)
def test_the_best_offer_is_chosen(accept: str, chosen: str) -> None:
    assert choose(accept) == chosen


def test_several_headers_count_as_one() -> None:
    assert choose("image/png;q=0.1", "image/webp;q=0.2") == WEBP


@pytest.mark.parametrize("accept", ["text/html", "*/*;q=0", "image/gif, audio/*"])
def test_what_nobody_offers_is_406(accept: str) -> None:
    with pytest.raises(Problem) as caught:
        choose(accept)
    assert caught.value.status == 406
