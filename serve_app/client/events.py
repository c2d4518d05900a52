"""Parses the events of a server's streams."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from serve_app.client.answers import DarkroomError, error_of, read_object


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream: `name` is progress, preview, image, failed or done."""

    name: str
    data: dict[str, Any] = field(repr=False)


class EventParser:
    """Puts a stream's lines together to events. Skips comments."""

    def __init__(self) -> None:
        self._name, self._data = "message", list[str]()

    def feed(self, line: str) -> ServerEvent | None:
        """Takes the next line, and returns the event that it ends, if any. Raises DarkroomError for broken data."""
        if not line:
            name, data = self._name, self._data
            self._name, self._data = "message", []
            return ServerEvent(name, read_object("\n".join(data))) if data else None
        field_name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field_name == "event":
            self._name = value
        elif field_name == "data":
            self._data.append(value)
        return None


def parse_events(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """Parses server-sent events from a stream's lines. Raises DarkroomError."""
    parser = EventParser()
    for line in lines:
        if (event := parser.feed(line)) is not None:
            yield event


class StreamEnd:
    """Sees to it that a stream has an end: raises the error that it ends with, or that it was cut off.

    A stream is read to its very end: the server takes a connection that is closed earlier for a disconnect.
    """

    def __init__(self) -> None:
        self._done = False

    def check(self, event: ServerEvent) -> ServerEvent:
        """Returns `event`. Raises DarkroomError if it is the error."""
        if event.name == "error":
            raise error_of(event.data)
        self._done = event.name == "done"
        return event

    def check_end(self) -> None:
        """Raises DarkroomError if the request was not done."""
        if not self._done:
            message = "the server ended the stream before the request was done"
            raise DarkroomError(0, "connection_lost", message, retryable=True)


def read_until_done(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """Yields a stream's events to its end. Raises DarkroomError."""
    end = StreamEnd()
    for event in parse_events(lines):
        yield end.check(event)
    end.check_end()


async def read_until_done_async(lines: AsyncIterable[str]) -> AsyncIterator[ServerEvent]:
    """As `read_until_done`."""
    parser, end = EventParser(), StreamEnd()
    async for line in lines:
        if (event := parser.feed(line)) is not None:
            yield end.check(event)
    end.check_end()
