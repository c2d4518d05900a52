"""The host names that a server answers to, and the pages that it takes requests from."""

from collections import Counter

import pytest
from pydantic import ValidationError

from serve_app.config.deployments import IngressConfig
from serve_app.config.server import AppConfig, load_config
from serve_app.gateway.hosts import AllowedHosts, hosts_of, is_own_origin
from serve_app.gateway.setup import make_gateway

HERE = ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.8.9.10", "[::1]", "[::ffff:127.0.0.1]"]
ELSEWHERE = [
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.localhost",
    "0.0.0.0",
    "10.0.0.5",
    "[::]",
    "[fe80::1]",
    "2130706433",
    "0x7f.1",
    "localhost,evil.example",
    "",
]


@pytest.mark.parametrize("host", HERE)
@pytest.mark.parametrize("port", ["", ":80", ":8000", ":65535"])
def test_loopback_is_always_served(host: str, port: str) -> None:
    assert AllowedHosts().is_allowed_host(host + port)
    assert AllowedHosts(("darkroom.example",)).is_allowed_host(host + port)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_other_hosts_only_where_they_are_named(host: str) -> None:
    assert not AllowedHosts().is_allowed_host(host)
    assert not AllowedHosts().is_allowed_host(f"{host}:8000")
    assert AllowedHosts(("*",)).is_allowed_host(host)


def test_names_are_served_at_any_port_and_those_below_them_only_with_a_star() -> None:
    hosts = AllowedHosts(("darkroom.example", "*.inner.example", "10.0.0.5", "fd00::5"))
    for host in ("darkroom.example", "DARKROOM.example.:8000", "a.inner.example", "a.b.inner.example:1", "10.0.0.5:80"):
        assert hosts.is_allowed_host(host)
    assert hosts.is_allowed_host("[fd00::5]:8000")
    for host in ("a.darkroom.example", "xdarkroom.example", "inner.example", "xinner.example", "10.0.0.6"):
        assert not hosts.is_allowed_host(host)


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("http://localhost:8000", "localhost:8000", True),
        ("http://LocalHost", "localhost:80", True),
        ("https://darkroom.example", "darkroom.example", True),
        ("https://darkroom.example", "darkroom.example:443", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://localhost:3000", "localhost:8000", False),
        ("http://127.0.0.1:8000", "localhost:8000", False),
        ("https://localhost", "localhost:8000", False),
        ("http://evil.example", "localhost:8000", False),
        ("http://localhost:8000.evil.example", "localhost:8000", False),
        ("http://localhost:8000@evil.example", "localhost:8000", False),
        ("http://localhost:8000/", "localhost:8000", False),
        ("file://", "localhost:8000", False),
        ("null", "localhost:8000", False),
        ("", "localhost:8000", False),
        ("http://localhost:8000", "", False),
    ],
)
def test_an_origin_is_ones_own_to_the_port(origin: str, host: str, own: bool) -> None:
    assert is_own_origin(origin, host) is own


def test_pages_of_named_hosts_may_ask_and_a_star_names_no_page() -> None:
    assert AllowedHosts(("ui.example",)).is_allowed_origin("https://ui.example:3000")
    assert not AllowedHosts(("ui.example",)).is_allowed_origin("https://ui.example.evil")
    assert not AllowedHosts(("*",)).is_allowed_origin("https://evil.example")
    assert not AllowedHosts(("ui.example",)).is_allowed_origin("null")


@pytest.mark.parametrize("name", ["", "a b", "http://a", "a:8000", "a/b", "*a", "a.*", "é.example", "[::1]", "a..b"])
def test_what_is_no_host_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValidationError, match="is no host"):
        IngressConfig(hosts=(name,))


def config(**settings: object) -> AppConfig:
    said = load_config("demo").model_dump(mode="json", exclude_unset=True)
    return AppConfig.model_validate(said | settings)


def test_without_keys_it_is_guarded_and_with_keys_only_named_hosts_count() -> None:
    assert hosts_of((), keys=False) == AllowedHosts()
    assert hosts_of(("a",), keys=False) == AllowedHosts(("a",))
    assert hosts_of((), keys=True) is None
    assert hosts_of(("a",), keys=True) == AllowedHosts(("a",), checks_origins=False)
    for without in ({}, {"without_keys": True}):
        assert make_gateway(config(**without), None, Counter()).hosts == AllowedHosts()
