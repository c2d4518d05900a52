"""What clients send and to whom, and what they say where that cannot be done."""

import ssl
from collections.abc import Callable

import httpx
import pytest

from serve_app.client import AsyncDarkroomClient, DarkroomClient, DarkroomError
from serve_app.client.messages import poll_seconds

KEY = "dk_mine"
IMAGE = {"index": 0, "seed": 3, "format": "png", "width": 64, "height": 64}


@pytest.mark.parametrize(
    ("place", "has_key"),
    [
        ("/ads/0", True),
        ("https://server.example/ads/0", True),
        ("https://server.example:443/ads/0", True),
        ("http://server.example/ads/0", False),
        ("https://server.example:8443/ads/0", False),
        ("https://elsewhere.example/ads/0", False),
    ],
)
async def test_the_key_goes_to_its_server_only(place: str, has_key: bool) -> None:
    given: list[str | None] = []

    def handle(request: httpx.Request) -> httpx.Response:
        given.append(request.headers.get("authorization"))
        return httpx.Response(200, content=b"pixels")

    job = {"results": [{"index": 0, "images": [IMAGE | {"url": place}]}]}
    transport = httpx.MockTransport(handle)
    with DarkroomClient("https://server.example", api_key=KEY, transport=transport) as client:
        (entry,) = client.entries_of(job)
    async with AsyncDarkroomClient("https://server.example", api_key=KEY, transport=transport) as other:
        assert await other.entries_of(job) == [entry]
    assert given == [f"Bearer {KEY}" if has_key else None] * 2


@pytest.mark.parametrize("url", ["http://a..b:1", f"http://{'a' * 64}.example", "ftp://a", "http://", "a"])
@pytest.mark.parametrize("kind", [DarkroomClient, AsyncDarkroomClient])
def test_an_address_that_is_none_is_refused(url: str, kind: Callable[[str], object]) -> None:
    with pytest.raises(DarkroomError) as caught:
        kind(url)
    assert caught.value.code == "invalid_url"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "ftp://127.0.0.1:1"])
@pytest.mark.parametrize("kind", [DarkroomClient, AsyncDarkroomClient])
def test_a_proxy_that_cannot_be_used_is_refused(
    proxy: str, kind: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(DarkroomError) as caught:
        kind("http://server.example")
    assert caught.value.code == "invalid_environment"


def answering(outcome: httpx.Response | Exception) -> DarkroomClient:
    def handle(_: httpx.Request) -> httpx.Response:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return DarkroomClient("https://server.example", retries=0, transport=httpx.MockTransport(handle))


@pytest.mark.parametrize("request_id", ["ü", "a\nb"])
def test_a_name_that_no_header_can_have_is_refused(request_id: str) -> None:
    with answering(httpx.Response(200)) as client, pytest.raises(DarkroomError) as caught:
        client.generate(prompt="a cup", request_id=request_id)
    assert (caught.value.code, caught.value.field) == ("invalid_request_id", "request_id")


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with answering(httpx.Response(200)) as client, pytest.raises(DarkroomError) as caught:
        client.generate(prompt="\ud800")
    assert caught.value.code == "invalid_parameter"


@pytest.mark.parametrize(
    ("cause", "code", "retryable"),
    [
        (ssl.SSLCertVerificationError(1, "self-signed"), "untrusted_certificate", False),
        (ssl.SSLError(1, "wrong version"), "tls_failed", False),
        (ssl.SSLEOFError(8, "closed"), "unreachable", True),
        (ConnectionRefusedError(), "unreachable", True),
    ],
)
def test_a_server_that_cannot_be_trusted_is_not_one_that_is_away(cause: OSError, code: str, retryable: bool) -> None:
    error = httpx.ConnectError("no")
    error.__cause__ = cause
    if isinstance(cause, ssl.SSLCertVerificationError):
        cause.verify_message = "self-signed certificate"
    with answering(error) as client, pytest.raises(DarkroomError) as caught:
        client.jobs()
    assert (caught.value.code, caught.value.retryable) == (code, retryable)


def test_a_redirect_says_where_to() -> None:
    redirect = httpx.Response(301, headers={"Location": "https://new.example/"})
    with answering(redirect) as client, pytest.raises(DarkroomError) as caught:
        client.jobs()
    assert caught.value.message == "the server answered 301, a redirect to 'https://new.example/'; use that address"


@pytest.mark.parametrize(
    "answer", [{"images": [{}]}, {"images": [7]}, {"images": None}, {"images": [], "failures": [{}]}]
)
def test_an_answer_that_lacks_something_is_told_as_such(answer: dict[str, object]) -> None:
    with answering(httpx.Response(200, json=answer)) as client, pytest.raises(DarkroomError) as caught:
        client.generate(prompt="a cup")
    assert caught.value.code == "invalid_answer"


def test_a_long_job_is_asked_for_less_often() -> None:
    assert [poll_seconds(waited) for waited in (0, 4, 10, 600)] == [0.5, 0.5, 1.0, 5.0]
