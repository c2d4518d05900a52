"""The layer around Ray's proxy: the headers that it drops, and the one request id that comes back."""

import re
from pathlib import Path

import httpx
import pytest
import uvicorn
from ray.serve._private import constants
from ray.serve._private.http_util import RequestIdMiddleware, validate_http_proxy_callback_return
from ray.serve._private.utils import call_function_from_import_path
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.serving.http_protocol import BoundedProtocol
from serve_app.serving.node_environment import HEAD_TIMEOUT_VARIABLE, NODE_ENVIRONMENT
from serve_app.serving.proxy_headers import RAYS_OWN


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Our application: says which headers reached it, and marks its answer."""
    headers = Request(scope).headers.items()
    answer = JSONResponse(headers, headers={"X-Request-Id": dict(headers)["x-request-id"]})
    await answer(scope, receive, send)


def proxy() -> ASGIApp:
    """As Ray builds it: its own layer within, those of the callback around it."""
    app: ASGIApp = RequestIdMiddleware(echo)
    path = NODE_ENVIRONMENT["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    for layer in validate_http_proxy_callback_return(call_function_from_import_path(path)):
        app = layer.cls(app, *layer.args, **layer.kwargs)
    return app


async def answer_to(headers: list[tuple[str, str]]) -> tuple[dict[str, str], list[str]]:
    """The headers that reach the application, and the answer's request ids."""
    transport = httpx.ASGITransport(app=proxy())
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        answer = await client.get("/")
    return dict(answer.json()), answer.headers.get_list("x-request-id")


def test_these_are_the_names_that_ray_acts_on() -> None:
    names = (
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
        constants.SERVE_MULTIPLEXED_MODEL_ID,
        constants.SERVE_SESSION_ID,
    )
    assert {name.replace("-", "_") for name in names} == RAYS_OWN
    assert constants.SERVE_HTTP_REQUEST_ID_HEADER == "x-request-id"


@pytest.mark.parametrize("name", sorted(RAYS_OWN))
@pytest.mark.parametrize("written", [str, str.title, lambda name: name.replace("_", "-")])
async def test_no_header_of_rays_gets_through(name: str, written: object) -> None:
    assert callable(written)
    seen, _ = await answer_to([(written(name), "1"), ("x-mine", "kept")])
    assert {key.replace("-", "_") for key in seen} & RAYS_OWN == set()
    assert seen["x-mine"] == "kept"


def test_with_the_layers_comes_the_protocol_below_them() -> None:
    """Ray makes its server after it has called us, and leaves the choice of a protocol to uvicorn."""
    proxy()
    config = uvicorn.Config(echo, lifespan="off")
    config.load()
    assert config.http_protocol_class is BoundedProtocol


async def test_a_good_request_id_comes_back_once() -> None:
    seen, ids = await answer_to([("x-request-id", "mine-1")])
    assert ids == ["mine-1"]
    assert seen["x-request-id"] == "mine-1"


@pytest.mark.parametrize("sent", [[], ["not good!"], ["a" * 200], ["bad one", "mine-2"]])
async def test_without_a_good_one_there_is_one_all_the_same(sent: list[str]) -> None:
    seen, ids = await answer_to([("X-Request-ID", value) for value in sent])
    assert len(ids) == 1
    assert ids == [seen["x-request-id"]]
    assert re.fullmatch(r"[0-9a-f-]{36}", ids[0])


def test_ray_reads_every_variable_that_we_set() -> None:
    others = {"OMP_WAIT_POLICY", "FORWARDED_ALLOW_IPS", "PYTHONSAFEPATH", HEAD_TIMEOUT_VARIABLE}
    for name in NODE_ENVIRONMENT:
        assert name in others or hasattr(constants, name), name


def test_uvicorn_believes_nobody_about_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "127.0.0.1" in uvicorn.Config(echo).forwarded_allow_ips
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", NODE_ENVIRONMENT["FORWARDED_ALLOW_IPS"])
    assert uvicorn.Config(echo).forwarded_allow_ips == "none"


def test_operators_are_told_of_every_variable_and_every_header() -> None:
    page = (Path(__file__).parents[3] / "docs" / "failures.md").read_text()
    for name, value in NODE_ENVIRONMENT.items():
        assert f"| `{name}` | `{value}` |" in page
    for name in RAYS_OWN:
        assert name in page.replace("-", "_")
