"""Reads what an HTTP server asks its clients to wait."""

import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime


def read_retry_after(text: str) -> float | None:
    """Returns the seconds that a `Retry-After` field asks for, 0 for a date that is past; None if it is no such field.

    It has seconds, or a date (RFC 9110, section 10.2.3).
    """
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        # All HTTP dates are in UTC, also those that name no zone.
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
