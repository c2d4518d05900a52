"""Pictures in JSON, in base64, also as data URLs. None is ever fetched."""

import base64
import binascii
import re
from typing import Final

from deployments.engine.protocol.errors import InvalidParameter

# Without `;base64` a data URL is percent-encoded text, which no picture is.
_DATA_URL: Final = re.compile(r"data:[\w.+-]{1,64}/[\w.+-]{1,64};base64,", re.ASCII)

_SPACE: Final = str.maketrans("", "", "\r\n\t ")


def decode_picture(text: str, field: str) -> bytes:
    """Returns the file in `text`. Raises InvalidParameter for what is no base64, and for addresses."""
    found = _DATA_URL.match(text[:256])
    bare = text[found.end() :] if found else text
    try:
        data = base64.b64decode(bare.translate(_SPACE), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidParameter(field, "must be a picture in base64, or a data URL of one; none is fetched") from None
    if not data:
        raise InvalidParameter(field, "is an empty picture")
    return data


def is_data_url(text: str) -> bool:
    """Returns True if `text` is a data URL of something in base64."""
    return _DATA_URL.match(text[:256]) is not None


def encode_picture(data: bytes) -> str:
    """Returns `data` in base64, without a data URL's beginning."""
    return base64.b64encode(data).decode()
