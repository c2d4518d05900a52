"""The page at `/` on which people try the server, and the files that it is made of. It asks nobody but this server."""

from pathlib import Path
from types import MappingProxyType
from typing import Final

from serve_app.api.assets import page_router, read_asset

_FOLDER: Final = Path(__file__).parent / "assets"
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

# Read once, so that no request ever names a path.
_ASSETS: Final = MappingProxyType({path.name: read_asset(path) for path in sorted(_FOLDER.iterdir())})

router = page_router("/", "/playground", _ASSETS, CONTENT_SECURITY_POLICY)
