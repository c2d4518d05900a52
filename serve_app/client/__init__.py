"""The client of a Darkroom server, for Python programs."""

from serve_app.client.client import (
    BASE,
    DarkroomClient,
    DarkroomError,
    ServedEntry,
    ServedImage,
    ServerEvent,
    parse_events,
)

__all__ = ["BASE", "DarkroomClient", "DarkroomError", "ServedEntry", "ServedImage", "ServerEvent", "parse_events"]
