"""The key and scope that each endpoint requires."""

import logging
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI
from starlette.routing import BaseRoute

from serve_app.api.application import create_api
from serve_app.api.scopes import RULES
from serve_app.config.secret import Secret
from serve_app.gateway.api_keys import Keyring, generate_key, hash_of
from serve_app.gateway.setup import Gateway
from serve_app.service import DiffusionService
from tests.serve_app.api.parsing.test_hostile import assert_problem
from tests.serve_app.fakes import EVENTS, PATH, FakeBackend, http
from tests.serve_app.servers import http_server

BASE = "/ads/v2/diffusion"
CUP = {"prompt": "a red cup"}
MAKER, OPERATOR, TRAINER, LOW, NO_KEY = (generate_key() for _ in range(5))


@pytest.fixture
def app(service: DiffusionService, tmp_path: Path) -> FastAPI:
    keys = [
        {"id": "maker", "hash": hash_of(MAKER), "tenant": "acme"},
        {"id": "operator", "hash": hash_of(OPERATOR), "tenant": "ops", "scopes": ["operate"]},
        {"id": "trainer", "hash": hash_of(TRAINER), "tenant": "acme", "scopes": ["train"]},
        {"id": "low", "hash": hash_of(LOW), "tenant": "acme", "priority": "low"},
    ]
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump(keys))
    return create_api(service, gateway=Gateway(keys=Keyring(Secret(file=file))))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def ask(app: FastAPI, method: str, path: str, headers: Any = None, **more: Any) -> httpx.Response:
    async with http(app) as client:
        return await client.request(method, path, headers=headers, **more)


def paths_of(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[str]:
    """Every route's path, also those that the documentation does not show."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield prefix + getattr(route, "path", "")
        else:
            yield from paths_of(inner.routes, prefix + getattr(route.include_context, "prefix", ""))  # type: ignore[attr-defined]


def test_every_route_has_a_rule_and_every_rule_a_route(app: FastAPI) -> None:
    routes = set(paths_of(app.routes))
    # The document has no word for a part that may have slashes.
    assert set(app.openapi()["paths"]) <= {path.replace(":path}", "}") for path in routes}
    assert routes == set(RULES)


def test_the_page_about_keys_says_of_every_route_what_it_needs() -> None:
    """A path of its own goes before one with a `*`, and the longer `*` before the shorter."""
    page = (Path(__file__).parents[3] / "docs" / "keys-and-limits.md").read_text()
    table = page.split("| needed |")[1].split("\n\n")[0]
    said: dict[str, str] = {}
    for needed, below, elsewhere in re.findall(r"^\| (.*?) \| (.*?) \| (.*?) ?\|$", table, re.MULTILINE):
        need = {"nothing": "nothing", "any key": "key"}.get(needed, needed.strip("`"))
        said |= dict.fromkeys((f"{BASE}/{name}" for name in re.findall(r"`([^`]+)`", below)), need)
        said |= dict.fromkeys(re.findall(r"`([^`]+)`", elsewhere), need)
    used = set()
    for path, need in RULES.items():
        fitting = [pattern for pattern in said if path == pattern or fnmatchcase(path, pattern)]
        assert fitting, path
        nearest = max(fitting, key=lambda pattern: ("*" not in pattern, len(pattern)))
        assert said[nearest] == need, path
        used.add(nearest)
    assert used == set(said)


def test_the_documentation_offers_to_give_a_key_where_there_are_some(app: FastAPI, service: DiffusionService) -> None:
    assert [each["scheme"] for each in app.openapi()["components"]["securitySchemes"].values()] == ["bearer"]
    assert "securitySchemes" not in create_api(service).openapi().get("components", {})


@pytest.mark.parametrize(("path", "need"), RULES.items())
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
async def test_a_key_opens_what_it_is_for_and_nothing_else(app: FastAPI, path: str, need: str, method: str) -> None:
    async def refusal(headers: dict[str, str]) -> int | None:
        status = (await ask(app, method, path, headers)).status_code
        return status if status in (401, 403) else None

    assert await refusal({}) == (None if need == "nothing" else 401)
    assert await refusal(bearer(NO_KEY)) == (None if need == "nothing" else 401)
    assert await refusal(bearer(MAKER)) == (403 if need in ("operate", "train") else None)
    assert await refusal(bearer(OPERATOR)) == (403 if need in ("generate", "train") else None)
    assert await refusal(bearer(TRAINER)) == (403 if need in ("generate", "operate") else None)


@pytest.mark.parametrize("path", ["/nowhere", f"{BASE}/stats/", f"{BASE}//stats", "/livez/x", "/LIVEZ", "/-/x"])
async def test_what_is_not_there_is_told_to_callers_with_a_key(app: FastAPI, path: str) -> None:
    assert_problem(await ask(app, "GET", path), 401, "missing_api_key")
    assert_problem(await ask(app, "GET", path, bearer(MAKER)), 404, "not_found")


@pytest.mark.parametrize("path", ["/livez/../metrics", f"{BASE}/%73tats", f"/livez/..{BASE}/stats"])
async def test_no_way_of_writing_a_path_goes_around_its_rule(app: FastAPI, path: str) -> None:
    assert (await ask(app, "GET", path)).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {MAKER}"},
        {"authorization": f"bearer   {MAKER} "},
        {"X-API-Key": MAKER},
        {"X-API-Key": MAKER, "Authorization": f"Bearer {MAKER}"},
        # What some proxy wants for itself.
        {"X-API-Key": MAKER, "Authorization": "Basic dXNlcjpwYXNz"},
        {"Authorization": f"Basic {b64encode(f'anybody:{MAKER}'.encode()).decode()}"},
        {"authorization": f"basic {b64encode(f':{MAKER}'.encode()).decode()}"},
    ],
)
async def test_a_key_may_come_in_each_header(app: FastAPI, backend: FakeBackend, headers: dict[str, str]) -> None:
    assert (await ask(app, "POST", PATH, headers, json=CUP)).status_code == 200
    assert backend.asked[0].tenant == "acme"


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", MAKER)],
        [("Authorization", f"Basic {MAKER}")],
        [("Authorization", f"Basic {b64encode(f'{MAKER}:'.encode()).decode()}")],
        [("Authorization", f"Basic {b64encode(MAKER.encode()).decode()}")],
        [("Authorization", "Basic dXNlcjpwYXNz")],
        [("Authorization", "Bearer")],
        [("Authorization", f"Bearer {MAKER}x")],
        [("Authorization", f"Bearer {MAKER[:-1]}")],
        [("Authorization", f"Bearer {hash_of(MAKER)}")],
        [("Authorization", "Bearer \xe9\xff")],
        [("Authorization", f"Bearer {MAKER}"), ("X-API-Key", OPERATOR)],
        [("Authorization", f"Bearer {MAKER}"), ("Authorization", f"Bearer {OPERATOR}")],
        [("X-API-Key", "x" * 10_000)],
        [("Cookie", f"key={MAKER}")],
    ],
)
async def test_what_is_no_key_is_401_and_reaches_nothing(
    app: FastAPI, backend: FakeBackend, headers: list[tuple[str, str]]
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    response = await ask(app, "POST", PATH, raw, json=CUP)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == response.json()["request_id"]
    assert not backend.asked


async def test_without_a_key_no_body_is_read(app: FastAPI) -> None:
    read: list[None] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(None)
        yield b"{}"

    response = await ask(app, "POST", PATH, content=body())
    assert_problem(response, 401, "missing_api_key")
    assert response.headers["connection"] == "close"
    assert not read


def test_a_large_body_without_a_key_is_refused_over_a_real_connection_too(app: FastAPI) -> None:
    with http_server(app) as url, httpx.Client(base_url=url, trust_env=False) as client:
        for size in (1000, 300_000):
            response = client.post(PATH, content=b"{" * size, headers={"Content-Type": "application/json"})
            assert_problem(response, 401, "missing_api_key")
            assert ("connection" in response.headers) == (size > 64 * 1024)
        assert client.post(PATH, json=CUP, headers=bearer(MAKER)).status_code == 200


async def test_the_wrong_scope_is_told_by_name(app: FastAPI) -> None:
    response = await ask(app, "POST", PATH, bearer(OPERATOR), json=CUP)
    assert_problem(response, 403, "insufficient_scope")
    assert "`generate`" in response.json()["detail"]
    assert 'scope="generate"' in response.headers["www-authenticate"]


async def test_neither_answers_nor_logs_hold_a_key(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    for key in (MAKER, NO_KEY):
        for path in (PATH, f"{BASE}/stats", "/nowhere"):
            response = await ask(app, "POST", path, bearer(key), json=CUP)
            texts.append(f"{response.headers} {response.text}")
    told = "".join((*texts, caplog.text))
    assert not [key for key in (MAKER, NO_KEY) if key in told or hash_of(key) in told]


async def test_a_priority_beyond_the_keys_is_refused_and_the_default_is_not(app: FastAPI, backend: FakeBackend) -> None:
    for accept in ({}, EVENTS):
        refused = await ask(app, "POST", PATH, bearer(LOW) | accept, json=CUP | {"priority": "normal"})
        assert_problem(refused, 403, "priority_not_allowed")
        assert refused.json()["error"]["param"] == "priority"
    assert (await ask(app, "POST", PATH, bearer(MAKER), json=CUP | {"priority": "high"})).status_code == 403
    assert not backend.asked
    for key, said in ((LOW, {}), (LOW, {"priority": "low"}), (MAKER, {}), (MAKER, {"priority": "low"})):
        assert (await ask(app, "POST", PATH, bearer(key), json=CUP | said)).status_code == 200
    assert [request.params.priority for request in backend.asked] == ["low", "low", "normal", "low"]


async def test_without_keys_nobody_is_asked_for_one(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    response = await client.post(PATH, json=CUP | {"priority": "high"}, headers=bearer(NO_KEY))
    assert response.status_code == 200
    assert backend.asked[0].tenant == ""
