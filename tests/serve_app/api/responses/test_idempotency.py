"""`Idempotency-Key`: the same request runs once, even if its answers get lost."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import Request, Response
from PIL import Image

from deployments.engine.protocol.errors import (
    DoesNotFit,
    EngineError,
    EngineStopped,
    GenerationFailed,
    Overloaded,
    Quarantined,
)
from serve_app.api.application import create_api
from serve_app.api.responses.idempotency import run_once
from serve_app.config.secret import Secret
from serve_app.gateway.api_keys import Keyring, generate_key, hash_of
from serve_app.gateway.setup import Gateway
from serve_app.service import DiffusionService
from tests.serve_app.api.parsing.test_hostile import assert_problem
from tests.serve_app.fakes import EVENTS, PATH, FakeBackend, failing, http, refusing, slow, success, until

BASE = "/ads/v2/diffusion"
CUP = {"prompt": "a red cup"}
ONCE = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}


def picture(colour: str = "teal") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "PNG")
    return buffer.getvalue()


def parts(door: str, colour: str = "teal", prompt: str = "a red cup") -> dict[str, Any]:
    """A request for that door, as httpx sends it."""
    match door:
        case "text-to-image":
            return {"json": {"prompt": prompt}}
        case "image-to-image":
            return {"data": {"prompt": prompt}, "files": {"init_image": picture(colour)}}
        case "inpaint":
            return {"data": {"prompt": prompt, "mask_type": "center"}, "files": {"image": picture(colour)}}
        case "batch-generate":
            return {"json": {"requests": [{"prompt": prompt}]}}
    return {"data": {"prompt": prompt, "controlnet_type": "canny"}, "files": {"control_image": picture(colour)}}


WITHOUT_PICTURES = ("text-to-image", "batch-generate")
DOORS = (*WITHOUT_PICTURES, "image-to-image", "inpaint", "controlnet")


@pytest.mark.parametrize("door", DOORS)
async def test_the_same_request_is_made_once_and_answered_twice(
    door: str, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    first, second = [await client.post(f"{BASE}/{door}", headers=ONCE, **parts(door)) for _ in range(2)]
    assert len(backend.asked) == 1
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    assert second.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    for name in ("content-type", "vary"):
        assert second.headers[name] == first.headers[name]
    assert second.headers["x-request-id"] != first.headers["x-request-id"]


@pytest.mark.parametrize("door", DOORS)
async def test_another_request_may_not_have_its_key(door: str, client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """Each differs in one thing: prompt, picture, wanted form."""
    await client.post(f"{BASE}/{door}", headers=ONCE, **parts(door))
    another_form = {"Prefer": "respond-async"} if door == "batch-generate" else {"Accept": "image/png"}
    others = [({}, parts(door, prompt="a blue cup")), (another_form, parts(door))]
    if door not in WITHOUT_PICTURES:
        others.append(({}, parts(door, colour="red")))
    for headers, body in others:
        refused = await client.post(f"{BASE}/{door}", headers=ONCE | headers, **body)
        assert_problem(refused, 422, "idempotency_key_reused")
    assert len(backend.asked) == 1


async def test_nor_may_the_same_one_at_another_door(service: DiffusionService) -> None:
    app = create_api(service)

    async def anything(request: Request) -> Response:
        async def work() -> Response:
            return Response(request.url.path)

        return await run_once(request, {"the": "same"}, (), work)

    for path in ("/one", "/other"):
        app.post(path)(anything)
    async with http(app) as client:
        assert (await client.post("/one", headers=ONCE)).text == "/one"
        assert_problem(await client.post("/other", headers=ONCE), 422, "idempotency_key_reused")
        assert (await client.post("/one", headers=ONCE)).text == "/one"


async def test_it_is_the_request_that_must_be_the_same_not_its_bytes(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for body in ('{"prompt": "a cup", "seed": 3}', '{"seed":3,\n"prompt":"a c\\u0075p"}'):
        sent = await client.post(PATH, headers={**ONCE, "Content-Type": "application/json"}, content=body)
        assert sent.status_code == 200
    assert len(backend.asked) == 1


async def test_a_drawn_seed_is_drawn_once(client: httpx.AsyncClient) -> None:
    seeds = {(await client.post(PATH, headers=ONCE, json=CUP)).json()["images"][0]["seed"] for _ in range(3)}
    assert len(seeds) == 1


async def test_a_picture_is_the_same_picture_again(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    headers = ONCE | {"Accept": "image/webp"}
    first, second = [await client.post(PATH, headers=headers, json=CUP) for _ in range(2)]
    assert second.content == first.content
    for name in ("content-type", "x-seed", "x-model", "content-disposition", "content-length"):
        assert second.headers[name] == first.headers[name]


async def test_while_the_first_is_being_made_the_second_is_in_conflict(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = slow
    first = asyncio.ensure_future(client.post(PATH, headers=ONCE, json=CUP))
    await until(lambda: backend.running == 1)
    conflict = await client.post(PATH, headers=ONCE, json=CUP)
    assert_problem(conflict, 409, "idempotency_conflict")
    assert int(conflict.headers["retry-after"]) > 0
    assert conflict.json()["retryable"]
    assert_problem(await client.post(PATH, headers=ONCE, json={"prompt": "x"}), 422, "idempotency_key_reused")
    # Its caller leaves, so nobody has had an answer.
    first.cancel()
    await until(lambda: backend.running == 0)
    backend.script = success
    again = await client.post(PATH, headers=ONCE, json=CUP)
    assert again.status_code == 200
    assert "idempotent-replayed" not in again.headers


@pytest.mark.parametrize("error", [DoesNotFit("too large"), Quarantined("no")])
async def test_a_final_refusal_is_repeated(error: EngineError, client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = refusing(error)
    first, second = [await client.post(PATH, headers=ONCE, json=CUP) for _ in range(2)]
    assert len(backend.asked) == 1
    assert_problem_of_first(first, second)


def assert_problem_of_first(first: httpx.Response, second: httpx.Response) -> None:
    assert (second.status_code, second.content) == (422, first.content)
    assert second.headers["content-type"] == "application/problem+json"
    assert second.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize(
    "script", [refusing(Overloaded("full")), refusing(EngineStopped("gone")), failing(GenerationFailed("no"), 0)]
)
async def test_what_may_go_better_the_next_time_is_tried_again(
    script: Callable[..., Any], client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = script
    assert (await client.post(PATH, headers=ONCE, json=CUP)).status_code >= 500
    backend.script = success
    assert (await client.post(PATH, headers=ONCE, json=CUP)).status_code == 200
    assert len(backend.asked) == 2


async def test_an_error_that_nobody_expected_gives_the_turn_back(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = lambda _: [RuntimeError("a bug")]
    assert (await client.post(PATH, headers=ONCE, json=CUP)).status_code == 500
    backend.script = success
    assert (await client.post(PATH, headers=ONCE, json=CUP)).status_code == 200


async def test_a_slip_does_not_use_the_key_up(client: httpx.AsyncClient) -> None:
    """What breaks a rule gets the same answer in any case, and may be put right under the same key."""
    assert (await client.post(PATH, headers=ONCE, json=CUP | {"width": 63})).status_code == 422
    assert (await client.post(PATH, headers=ONCE, json=CUP)).status_code == 200


NO_KEYS = ["", '""', "a b", '"a', '"a"b', "a,b", "x" * 256, "x" * 10_000, "\xe9", "a\tb"]


@pytest.mark.parametrize("keys", [*([key] for key in NO_KEYS), ["a", "b"], ["a", "a"]])
async def test_a_key_that_is_none_is_refused(keys: list[str], client: httpx.AsyncClient, backend: FakeBackend) -> None:
    headers = [(b"Idempotency-Key", key.encode("latin-1")) for key in keys]
    for accept in (b"application/json", b"text/event-stream"):
        response = await client.post(PATH, headers=[*headers, (b"Accept", accept)], json=CUP)
        assert_problem(response, 400, "invalid_idempotency_key")
    assert not backend.asked


async def test_quotes_around_a_key_are_not_part_of_it(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    for key in ("abc", '"abc"', " abc "):
        assert (await client.post(PATH, headers={"Idempotency-Key": key}, json=CUP)).status_code == 200
    assert len(backend.asked) == 1


async def test_a_stream_cannot_have_a_key_and_says_so(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    response = await client.post(PATH, headers=ONCE | EVENTS, json=CUP)
    assert_problem(response, 400, "idempotency_not_supported")
    assert not backend.asked


async def test_without_a_key_every_request_is_made(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    for _ in range(2):
        await client.post(PATH, json=CUP | {"seed": 3})
    assert len(backend.asked) == 2


@pytest.fixture
async def tenants(service: DiffusionService, tmp_path: Path) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """A client for each of three keys; two are of one tenant."""
    keys = {"acme-1": generate_key(), "acme-2": generate_key(), "other-1": generate_key()}
    entries = [{"id": id, "hash": hash_of(key), "tenant": id.partition("-")[0]} for id, key in keys.items()]
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump(entries))
    app = create_api(service, gateway=Gateway(keys=Keyring(Secret(file=tmp_path / "keys.yaml"))))
    clients = {id: http(app) for id in keys}
    for id, client in clients.items():
        client.headers["X-API-Key"] = keys[id]
    yield clients
    for client in clients.values():
        await client.aclose()


async def test_a_key_is_its_tenants_own(tenants: dict[str, httpx.AsyncClient], backend: FakeBackend) -> None:
    for client in tenants.values():
        assert (await client.post(PATH, headers=ONCE, json=CUP)).status_code == 200
    assert [request.tenant for request in backend.asked] == ["acme", "other"]
    # Not even whether it was used is told to others.
    assert (await tenants["other-1"].post(PATH, headers=ONCE, json={"prompt": "x"})).status_code == 422
    other = {"Idempotency-Key": "another"}
    assert (await tenants["acme-1"].post(PATH, headers=other, json=CUP)).status_code == 200
    assert (await tenants["other-1"].post(PATH, headers=other, json={"prompt": "x"})).status_code == 200


async def test_replays_are_counted(client: httpx.AsyncClient, service: DiffusionService) -> None:
    for _ in range(3):
        await client.post(PATH, headers=ONCE, json=CUP)
    stats = (await client.get(f"{BASE}/stats")).json()
    assert (stats["idempotent_replays"], stats["requests"]) == (2, 1)


async def test_the_documentation_names_the_header(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for door in DOORS:
        names = [each["name"] for each in paths[f"{BASE}/{door}"]["post"]["parameters"]]
        assert names == [*([] if door == "batch-generate" else ["previews"]), "Idempotency-Key"], json.dumps(names)
