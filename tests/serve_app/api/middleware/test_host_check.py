"""Without keys a server takes requests from its own machine's programs and its own pages, not from other sites."""

from pathlib import Path

import httpx
import pytest
import yaml

from serve_app.api.application import create_api
from serve_app.config.secret import Secret
from serve_app.gateway.api_keys import Keyring, generate_key, hash_of
from serve_app.gateway.hosts import AllowedHosts
from serve_app.gateway.setup import Gateway
from serve_app.service import DiffusionService
from tests.serve_app.fakes import FakeBackend, http

DOOR = "/ads/v2/diffusion/text-to-image"
IMAGES = "/ads/v2/diffusion/image-to-image"
CUP = {"prompt": "a red cup", "width": 64, "height": 64}
HERE = {"host": "localhost:8000"}


def client_of(hosts: AllowedHosts | None, backend: FakeBackend, keys: Keyring | None = None) -> httpx.AsyncClient:
    return http(create_api(DiffusionService(backend), gateway=Gateway(hosts=hosts, keys=keys)))


async def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "evil" not in answer.text


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/metrics", "/ads/v2/diffusion/stats", "/nowhere"])
async def test_a_name_that_was_made_to_point_here_is_not_served(backend: FakeBackend, path: str) -> None:
    """DNS rebinding: the page's own host is the attacker's, and so is everything that the browser says of it."""
    evil = {"host": "evil.example:8000", "origin": "http://evil.example:8000", "sec-fetch-site": "same-origin"}
    async with client_of(AllowedHosts(), backend) as client:
        await refused(await client.get(path, headers=evil), 421, "unknown_host")
        await refused(await client.post(DOOR, json=CUP, headers=evil), 421, "unknown_host")
    assert backend.asked == []


@pytest.mark.parametrize(
    ("page", "code"),
    [
        ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, "foreign_origin"),
        ({"origin": "https://evil.example"}, "foreign_origin"),
        ({"origin": "null"}, "foreign_origin"),
        ({"origin": "http://localhost:3000", "sec-fetch-site": "same-site"}, "foreign_origin"),
        ({"origin": ""}, "foreign_origin"),
        ({"sec-fetch-site": "cross-site"}, "cross_site_request"),
        ({"sec-fetch-site": "Cross-Site"}, "cross_site_request"),
        ({"origin": "http://localhost:8000", "sec-fetch-site": "cross-site"}, "cross_site_request"),
    ],
)
async def test_another_sites_page_makes_nothing_work(backend: FakeBackend, page: dict[str, str], code: str) -> None:
    form: dict[str, tuple[str | None, bytes]] = {"prompt": (None, b"a cup"), "init_image": ("a.png", b"\x89PNG")}
    async with client_of(AllowedHosts(), backend) as client:
        await refused(await client.post(IMAGES, files=form, headers=HERE | page), 403, code)
        await refused(await client.post(DOOR, json=CUP, headers=HERE | page), 403, code)
        for path in ("/livez", "/metrics", "/docs"):
            await refused(await client.get(path, headers=HERE | page), 403, code)
    assert backend.asked == []


async def test_two_origins_are_nobodys(backend: FakeBackend) -> None:
    twice = [("host", "localhost"), ("origin", "http://localhost"), ("origin", "http://localhost")]
    async with client_of(AllowedHosts(), backend) as client:
        await refused(await client.post(DOOR, json=CUP, headers=twice), 403, "foreign_origin")


@pytest.mark.parametrize(
    "page",
    [
        {},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "same-origin"},
        {"origin": "http://localhost:8000", "sec-fetch-site": "same-origin"},
    ],
)
async def test_programs_and_its_own_pages_are_served(backend: FakeBackend, page: dict[str, str]) -> None:
    async with client_of(AllowedHosts(), backend) as client:
        assert (await client.post(DOOR, json=CUP, headers=HERE | page)).status_code == 200


async def test_named_hosts_and_their_pages_are_served(backend: FakeBackend) -> None:
    page = {"origin": "https://darkroom.example", "sec-fetch-site": "cross-site"}
    async with client_of(AllowedHosts(("darkroom.example",)), backend) as client:
        for host in ("darkroom.example", "localhost:8000"):
            assert (await client.post(DOOR, json=CUP, headers=page | {"host": host})).status_code == 200
        await refused(await client.post(DOOR, json=CUP, headers={"host": "evil.example"}), 421, "unknown_host")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/ads/v2/diffusion/health"])
async def test_probes_ask_by_address(backend: FakeBackend, path: str) -> None:
    async with client_of(AllowedHosts(), backend) as client:
        assert (await client.get(path, headers={"host": "10.1.2.3:8000"})).status_code != 421


async def test_with_keys_only_the_operators_names_count(backend: FakeBackend, tmp_path: Path) -> None:
    key = {"id": "maker", "hash": hash_of(generate_key()), "tenant": "acme"}
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump([key]))
    keys = Keyring(Secret(file=tmp_path / "keys.yaml"))
    page = {"host": "any.example", "origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    async with client_of(None, backend, keys) as client:
        await refused(await client.post(DOOR, json=CUP, headers=page), 401, "missing_api_key")
    async with client_of(AllowedHosts(("darkroom.example",), checks_origins=False), backend, keys) as client:
        await refused(await client.post(DOOR, json=CUP, headers=page), 421, "unknown_host")
        page["host"] = "darkroom.example"
        await refused(await client.post(DOOR, json=CUP, headers=page), 401, "missing_api_key")


async def test_a_long_body_that_is_refused_is_not_waited_for(backend: FakeBackend) -> None:
    evil = {"host": "evil.example", "content-length": "1000000"}
    async with client_of(AllowedHosts(), backend) as client:
        answer = await client.post(DOOR, content=b" " * 1_000_000, headers=evil)
    assert (answer.status_code, answer.headers["connection"]) == (421, "close")


async def test_other_sites_may_link_to_the_page_for_people_and_to_nothing_else(backend: FakeBackend) -> None:
    link = HERE | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    async with client_of(AllowedHosts(), backend) as client:
        assert (await client.get("/", headers=link)).status_code == 200
        await refused(await client.get("/metrics", headers=link), 403, "cross_site_request")
        await refused(await client.get("/", headers=link | {"sec-fetch-dest": "iframe"}), 403, "cross_site_request")
        await refused(await client.get("/", headers=link | {"host": "evil.example"}), 421, "unknown_host")
