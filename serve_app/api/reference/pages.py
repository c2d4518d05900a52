"""The API reference at `/docs`: Swagger UI over this server's own OpenAPI document. It asks nobody but this server.

FastAPI's own page of this name loads its scripts from a stranger's host, and runs one that is written into the page.
"""

from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Final

from serve_app.api.assets import page_router, read_asset

_OWN: Final = Path(__file__).parent / "assets"
_SWAGGER_UI: Final = Path(str(files("fastapi_offline"))) / "static"

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

# Read once, so that no request ever names a path.
_ASSETS: Final = MappingProxyType(
    {path.name: read_asset(path) for path in sorted(_OWN.iterdir())}
    | {name: read_asset(_SWAGGER_UI / name) for name in ("swagger-ui.css", "swagger-ui-bundle.js")}
)

router = page_router("/docs", "/docs", _ASSETS, CONTENT_SECURITY_POLICY)
