"""Callbacks reach public addresses only, and the very ones that were checked."""

import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from serve_app.callbacks.addresses import AddressRefused, AddressRules
from serve_app.callbacks.sender import Sender, SendError
from serve_app.config.callbacks import CallbacksConfig
from tests.serve_app.callbacks.receivers import Receiver, certified, receiver


def rules(**config: Any) -> AddressRules:
    return AddressRules(CallbacksConfig.model_validate({"uploads": True} | config))


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://example.com/", "begin with https://"),
        ("ftp://example.com/", "begin with https://"),
        ("//example.com/", "begin with https://"),
        ("", "must be a URL"),
        ("https://", "must have a host"),
        ("https:///path", "must have a host"),
        ("https://user@example.com/", "neither a user"),
        ("https://user:pass@example.com/", "neither a user"),
        ("https://example.com/#here", "nor a fragment"),
        ("https://example.com:8443/", "one of the ports 443"),
        ("https://example.com:0/", "one of the ports 443"),
        ("https://example.com:99999/", "must be a URL"),
        ("https://exa mple.com/", "must be a URL"),
        ("https://example.com/\r\nx: y", "must be a URL"),
        ("https://example.com\\@127.0.0.1/", "must be a URL"),
        ("https://exämple.com/", "must be a URL"),
        ("https://[::1/", "must be a URL"),
        ("https://example.com/" + "a" * 2048, "at most 2048 characters"),
        ("https://127.0.0.1/", "public address"),
        ("https://[::1]/", "public address"),
        ("https://[::ffff:10.0.0.1]/", "public address"),
        ("https://169.254.169.254/latest/meta-data", "public address"),
    ],
)
def test_a_url_that_is_not_called_is_refused_when_it_is_given(url: str, rule: str) -> None:
    with pytest.raises(AddressRefused, match=rule):
        rules().check_url(url)


@pytest.mark.parametrize("url", ["https://example.com/hook?a=b%20c&d", "https://EXAMPLE.com:443", "https://8.8.8.8/x"])
def test_a_public_url_is_taken(url: str) -> None:
    rules().check_url(url)


NOT_PUBLIC = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fd00:ec2::254",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "2001:db8::1",
    "2001:0:7f00:1::",
    "64:ff9b:1::1",
    "fec0::1",
    "feff:ffff::1",
    "3fff::1",
    "5f00::1",
    "4000::1",
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public_are_not_called(address: str) -> None:
    with pytest.raises(AddressRefused, match="public address"):
        rules().check_address(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are(address: str) -> None:
    rules().check_address(ip_address(address))


def test_an_operator_may_allow_a_network() -> None:
    allowing = rules(allow_networks=["10.1.0.0/16", "fd00::/8"])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1"):
        allowing.check_address(ip_address(address))
    for address in ("10.2.0.1", "127.0.0.1", "fe80::1"):
        with pytest.raises(AddressRefused):
            allowing.check_address(ip_address(address))


@pytest.mark.parametrize(
    ("networks", "address"),
    [
        # Teredo, by way of the server 10.1.0.1, to 169.254.169.254.
        (["10.1.0.0/16"], "2001:0:a01:1:0:ffff:5601:5601"),
        (["10.1.0.0/16", "2001::/32"], "2001:0:a01:1:0:ffff:5601:5601"),
        # 6to4, to 169.254.169.254.
        (["2002::/16"], "2002:a9fe:a9fe::1"),
    ],
)
def test_an_allowed_network_allows_nothing_that_is_reached_through_it(networks: list[str], address: str) -> None:
    with pytest.raises(AddressRefused, match="public address"):
        rules(allow_networks=networks).check_address(ip_address(address))


def test_a_tunnel_is_allowed_where_each_address_that_it_reaches_is() -> None:
    allowing = rules(allow_networks=["10.1.0.0/16", "2001::/32", "2002::/16"])
    for address in ("2001:0:a01:1:0:ffff:f5fe:fffe", "2002:a01:1::1"):
        allowing.check_address(ip_address(address))


def test_an_operator_may_name_the_only_hosts() -> None:
    only = rules(hosts=["hooks.example.com", "*.s3.example.com"])
    for host in ("hooks.example.com", "HOOKS.example.com.", "a.b.s3.example.com"):
        only.check_url(f"https://{host}/")
    for host in ("example.com", "s3.example.com", "evil-hooks.example.com", "hooks.example.com.evil.com"):
        with pytest.raises(AddressRefused, match="that this server may call"):
            only.check_url(f"https://{host}/")


@pytest.fixture
async def local() -> AsyncIterator[Receiver]:
    async with receiver() as running:
        yield running


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Lets names mean one of `answers` after another. Returns the names that were asked for."""
    asked: list[str] = []
    left = list(answers)

    def look_up(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        return [(0, 0, 0, "", (address, port)) for address in left.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def sender(local: Receiver, **config: Any) -> Sender:
    return Sender(rules(allow_http=True, ports=[local.port], **config), 2)


async def test_a_name_is_looked_up_once_and_called_where_it_was_checked(
    local: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that means another address a moment later (DNS rebinding) leads nowhere else."""
    calling = sender(local, allow_networks=["127.0.0.1/32"])
    asked = resolving(monkeypatch, ["127.0.0.1"], ["10.0.0.1"])
    reply = await calling.send("POST", local.url(host="rebound.example"), {}, b"hello", 5)
    assert (reply.status, asked) == (204, ["rebound.example"])
    assert local.received[0].headers["host"] == f"rebound.example:{local.port}"
    with pytest.raises(SendError, match="address_not_allowed") as caught:
        await calling.send("POST", local.url(host="rebound.example"), {}, b"hello", 5)
    assert caught.value.final
    await calling.close()


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_an_answer_says_when_to_come_back_in_seconds_or_by_a_date(form: str, local: Receiver) -> None:
    asked = "3500" if form == "seconds" else formatdate(time.time() + 3500, usegmt=True)
    local.behaves(
        "/hook", (503, {"Retry-After": asked}), (503, {"Retry-After": "99999"}), (503, {"Retry-After": "soon"})
    )
    calling = sender(local, allow_networks=["127.0.0.1/32"])
    waits = [(await calling.send("POST", local.url(), {}, b"", 5)).retry_after_s for _ in range(3)]
    assert waits == [pytest.approx(3500, abs=300), 3600, None]
    await calling.close()


async def test_a_name_with_one_address_that_is_not_allowed_is_not_called(
    local: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    calling = sender(local, allow_networks=["127.0.0.1/32"])
    resolving(monkeypatch, ["127.0.0.1", "127.0.0.2"])
    with pytest.raises(SendError, match="address_not_allowed"):
        await calling.send("POST", local.url(host="both.example"), {}, b"", 5)
    assert local.connections == 0
    await calling.close()


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f000001", "0"])
async def test_no_way_of_writing_loopback_reaches_it(local: Receiver, host: str) -> None:
    calling = sender(local)
    with pytest.raises(SendError):
        await calling.send("POST", local.url(host=host), {}, b"", 5)
    assert local.connections == 0
    await calling.close()


async def test_the_next_address_is_tried_where_one_does_not_answer(
    local: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    calling = sender(local, allow_networks=["127.0.0.0/8"])
    resolving(monkeypatch, ["127.0.0.3", "127.0.0.1"])
    assert (await calling.send("POST", local.url(host="two.example"), {}, b"", 5)).status == 204
    await calling.close()


@contextmanager
def black_hole(address: str, port: int) -> Iterator[None]:
    """Has nothing answer at `address`, neither yes nor no: its server takes no connections, and its queue is full."""
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind((address, port))
        server.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex((address, port))
        yield


@pytest.mark.parametrize("timeout_s", [1.0, 30.0])
async def test_an_address_that_says_nothing_leaves_time_for_the_next(
    timeout_s: float, local: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a name's IPv6 address does where there is no way for IPv6."""
    calling = sender(local, allow_networks=["127.0.0.0/8"])
    resolving(monkeypatch, ["127.0.0.2", "127.0.0.1"])
    began = time.monotonic()
    with black_hole("127.0.0.2", local.port):
        assert (await calling.send("POST", local.url(host="two.example"), {}, b"", timeout_s)).status == 204
    assert time.monotonic() - began < 10
    await calling.close()


async def test_an_unknown_name_has_a_reason_of_its_own(local: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    calling = sender(local)

    def look_up(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(SendError, match="unknown_host") as caught:
        await calling.send("POST", local.url(host="gone.example"), {}, b"", 5)
    assert not caught.value.final
    await calling.close()


async def test_a_certificate_is_checked_against_the_name_though_an_address_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, authority = certified(tmp_path, "hooks.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    async with receiver(context) as behind:
        calling = sender(behind, allow_networks=["127.0.0.1/32"])
        resolving(monkeypatch, ["127.0.0.1"], ["127.0.0.1"])
        assert (await calling.send("POST", behind.url(host="hooks.example"), {}, b"hello", 5)).status == 204
        with pytest.raises(SendError, match="certificate_not_valid"):
            await calling.send("POST", behind.url(host="other.example"), {}, b"hello", 5)
        await calling.close()
        assert len(behind.received) == 1
