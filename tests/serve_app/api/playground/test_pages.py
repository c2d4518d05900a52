"""The page's files over HTTP: who gets them, with which headers, and what they may refer to."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from serve_app.api.application import create_api
from serve_app.api.playground import pages
from serve_app.config.sections import PlaygroundConfig
from serve_app.config.server import AppConfig
from serve_app.service import DiffusionService
from tests.serve_app.fakes import http

FOLDER = Path(pages.__file__).parent / "assets"
FILES = sorted(FOLDER.iterdir())
MARKUP = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|style=\"|onclick="
PAGE = (FOLDER / "index.html").read_text()


def url_of(file: Path) -> str:
    return "/" if file.name == "index.html" else f"/playground/{file.name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
async def test_every_file_is_served_as_it_is_and_nothing_inline_may_run(file: Path, client: httpx.AsyncClient) -> None:
    answer = await client.get(url_of(file))
    assert answer.content == file.read_bytes()
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    again = await client.get(url_of(file), headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    assert (await client.get(url_of(file), headers={"If-None-Match": '"other"'})).status_code == 200


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_name_no_other_server_and_can_be_read_in_one_go(file: Path) -> None:
    text = file.read_text()
    assert set(re.findall(r"https?://[\w./]*", text)) <= {"http://www.w3.org/2000/svg"}
    assert len(text.splitlines()) <= 320
    assert not re.search(MARKUP, text)


def test_every_file_is_used_and_whatever_is_used_is_there() -> None:
    used = set(re.findall(r'"/playground/([\w.-]+)"', PAGE)) | {"index.html"}
    for file in FILES:
        used |= set(re.findall(r'from "\./([\w-]+\.js)"', file.read_text()))
    assert used == {file.name for file in FILES}


@pytest.mark.parametrize("name", ["index.html", "nothing.js", "..%2fpages.py", "%2e%2e/pages.py", "assets"])
async def test_nothing_else_is_served(name: str, client: httpx.AsyncClient) -> None:
    assert (await client.get(f"/playground/{name}")).status_code == 404


async def test_head_and_wrong_methods_are_answered_as_everywhere(client: httpx.AsyncClient) -> None:
    assert (await client.head("/")).headers["content-type"] == "text/html; charset=utf-8"
    assert (await client.post("/")).status_code == 405


@pytest.fixture
async def without_page(service: DiffusionService) -> AsyncIterator[httpx.AsyncClient]:
    async with http(create_api(service, playground=PlaygroundConfig(enabled=False))) as client:
        yield client


async def test_an_operator_can_leave_the_page_out(without_page: httpx.AsyncClient) -> None:
    for path in ("/", "/playground/main.js"):
        assert (await without_page.get(path)).status_code == 404
    assert (await without_page.get("/livez")).status_code == 200
    config = {"deployments": [{"name": "a", "models": ["demo-sd"]}], "playground": {"enabled": False}}
    assert not AppConfig.model_validate(config).playground.enabled
