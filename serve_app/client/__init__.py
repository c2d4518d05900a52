"""The client of a Darkroom server, for Python programs."""

from serve_app.client.answers import DarkroomError, ServedEntry, ServedImage
from serve_app.client.async_client import AsyncDarkroomClient
from serve_app.client.client import DarkroomClient
from serve_app.client.events import ServerEvent, parse_events
from serve_app.client.messages import BASE

__all__ = [
    "BASE",
    "AsyncDarkroomClient",
    "DarkroomClient",
    "DarkroomError",
    "ServedEntry",
    "ServedImage",
    "ServerEvent",
    "parse_events",
]
