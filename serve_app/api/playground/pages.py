"""The page at `/` on which people try the server, and the files that it is made of. It asks nobody but this server."""

from pathlib import Path
from types import MappingProxyType
from typing import Final

from fastapi import APIRouter, Response
from starlette.exceptions import HTTPException

from serve_app.api.assets import IfNoneMatch, answer_with, page_headers, read_asset

router = APIRouter(include_in_schema=False)

_FOLDER: Final = Path(__file__).parent / "assets"
_PAGE: Final = "index.html"
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

_HEADERS: Final = page_headers(CONTENT_SECURITY_POLICY)

# Read once, so that no request ever names a path.
_ASSETS: Final = MappingProxyType({path.name: read_asset(path) for path in sorted(_FOLDER.iterdir())})


@router.get("/")
async def page(if_none_match: IfNoneMatch = None) -> Response:
    """Returns the page."""
    return answer_with(_ASSETS[_PAGE], if_none_match, _HEADERS)


@router.get("/playground/{name}")
async def asset(name: str, if_none_match: IfNoneMatch = None) -> Response:
    """Returns a file that the page refers to. Raises HTTPException 404."""
    found = _ASSETS.get(name)
    if found is None or name == _PAGE:
        raise HTTPException(404)
    return answer_with(found, if_none_match, _HEADERS)
