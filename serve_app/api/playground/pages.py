"""The page at `/` on which people try the server, and the files that it is made of. It asks nobody but this server."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final

from fastapi import APIRouter, Header, Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

_FOLDER: Final = Path(__file__).parent / "assets"
_PAGE: Final = "index.html"
_MEDIA_TYPES: Final = MappingProxyType(
    {
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
    }
)

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text can become markup: browsers that know this refuse every way of doing so.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

_HEADERS: Final = MappingProxyType(
    {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        # Kept, and asked for again: after an update all files are of one version.
        "Cache-Control": "no-cache",
    }
)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page, in memory."""

    content: bytes
    media_type: str
    etag: str


def _read_asset(path: Path) -> Asset:
    content = path.read_bytes()
    return Asset(content, _MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


# Read once, so that no request ever names a path.
_ASSETS: Final = MappingProxyType({path.name: _read_asset(path) for path in sorted(_FOLDER.iterdir())})

IfNoneMatch = Annotated[str | None, Header()]


@router.get("/")
async def page(if_none_match: IfNoneMatch = None) -> Response:
    """Returns the page."""
    return _answer(_ASSETS[_PAGE], if_none_match)


@router.get("/playground/{name}")
async def asset(name: str, if_none_match: IfNoneMatch = None) -> Response:
    """Returns a file that the page refers to. Raises HTTPException 404."""
    found = _ASSETS.get(name)
    if found is None or name == _PAGE:
        raise HTTPException(404)
    return _answer(found, if_none_match)


def _answer(asset: Asset, if_none_match: str | None) -> Response:
    headers = {**_HEADERS, "ETag": asset.etag}
    # Weak comparison (RFC 9110): proxies that compress mark the tag as weak.
    known = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    if asset.etag in known or known == ["*"]:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
