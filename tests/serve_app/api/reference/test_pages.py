"""The files of the API reference: all from this server, under a policy that allows no other."""

import json
import re

import httpx

from serve_app.api.reference.pages import CONTENT_SECURITY_POLICY


async def test_the_page_names_files_of_this_server_only(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    named = re.findall(r"(?:src|href)=\"(?!data:)([^\"]+)\"", page.text)
    assert len(named) == 3
    assert not re.findall(r"<script>|<style|https?://", page.text)
    for name in named:
        answer = await client.get(f"/{name}")
        assert answer.status_code == 200
        again = await client.get(f"/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304


async def test_there_is_nothing_else(client: httpx.AsyncClient) -> None:
    for name in ("index.html", "..%2fpages.py", "redoc.standalone.js"):
        assert (await client.get(f"/docs/{name}")).status_code == 404
    assert (await client.get("/redoc")).status_code == 404


async def test_every_reference_in_the_document_leads_somewhere_in_it(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    for reference in re.findall(r'"\$ref": ?"([^"]+)"', json.dumps(document)):
        place = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
        assert place
