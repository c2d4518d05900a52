"""Files of the server's own pages: read once, and sent with an ETag under a Content-Security-Policy."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final

from fastapi import APIRouter, Header, Response
from starlette.exceptions import HTTPException

_MEDIA_TYPES: Final = MappingProxyType(
    {
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
    }
)

_PAGE: Final = "index.html"

IfNoneMatch = Annotated[str | None, Header()]


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of a page, in memory."""

    content: bytes
    media_type: str
    etag: str


def read_asset(path: Path) -> Asset:
    """Reads a file, whose kind its suffix says."""
    content = path.read_bytes()
    return Asset(content, _MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def page_router(path: str, files_at: str, assets: Mapping[str, Asset], content_security_policy: str) -> APIRouter:
    """Returns the endpoints of a page: `index.html` of `assets` at `path`, other files by name below `files_at`."""
    headers = {
        "Content-Security-Policy": content_security_policy,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        # Kept, and asked for again: after an update all files are of one version.
        "Cache-Control": "no-cache",
    }
    router = APIRouter(include_in_schema=False)

    @router.get(path)
    async def page(if_none_match: IfNoneMatch = None) -> Response:
        """Returns the page."""
        return _answer_with(assets[_PAGE], if_none_match, headers)

    @router.get(f"{files_at}/{{name}}")
    async def asset(name: str, if_none_match: IfNoneMatch = None) -> Response:
        """Returns a file that the page refers to. Raises HTTPException 404."""
        found = assets.get(name)
        if found is None or name == _PAGE:
            raise HTTPException(404)
        return _answer_with(found, if_none_match, headers)

    return router


def _answer_with(asset: Asset, if_none_match: str | None, headers: Mapping[str, str]) -> Response:
    """Returns the file, or 304 where the caller has it."""
    headers = {**headers, "ETag": asset.etag}
    # Weak comparison (RFC 9110): proxies that compress mark the tag as weak.
    known = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    if asset.etag in known or known == ["*"]:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
