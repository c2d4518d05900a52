"""The API reference at `/docs`: Swagger UI over this server's own OpenAPI document. It asks nobody but this server.

FastAPI's own page of this name loads its scripts from a stranger's host, and runs one that is written into the page.
"""

from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fastapi import APIRouter, Response
from starlette.exceptions import HTTPException

from serve_app.api.assets import IfNoneMatch, answer_with, page_headers, read_asset

router = APIRouter(include_in_schema=False)

_OWN: Final = Path(__file__).parent / "assets"
_SWAGGER_UI: Final = Path(str(files("fastapi_offline"))) / "static"
_PAGE: Final = "index.html"

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

_HEADERS: Final = page_headers(CONTENT_SECURITY_POLICY)

# Read once, so that no request ever names a path.
_ASSETS: Final = MappingProxyType(
    {path.name: read_asset(path) for path in sorted(_OWN.iterdir())}
    | {name: read_asset(_SWAGGER_UI / name) for name in ("swagger-ui.css", "swagger-ui-bundle.js")}
)


@router.get("/docs")
async def page(if_none_match: IfNoneMatch = None) -> Response:
    """Returns the page."""
    return answer_with(_ASSETS[_PAGE], if_none_match, _HEADERS)


@router.get("/docs/{name}")
async def asset(name: str, if_none_match: IfNoneMatch = None) -> Response:
    """Returns a file that the page refers to. Raises HTTPException 404."""
    found = _ASSETS.get(name)
    if found is None or name == _PAGE:
        raise HTTPException(404)
    return answer_with(found, if_none_match, _HEADERS)
