"""The states of one family of engines in Redis: an index that everybody follows, and a value for each state.

Under `states:<generation>:<family>:` there are `index`, a stream with a line for each state in the order in which they
came, and `<name>` of each state: signed bytes, believed only at that very key. The generation is in every name, so that
nobody finds what was to be forgotten. Everything there ends by itself after a time.
"""

import re
import secrets
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from deployments.engine.similar.saved_states import SavedState
from deployments.sharing.packed_state import MAX_STATE_BYTES, BadState, pack, unpack
from deployments.sharing.spec import SharingSpec, generation_key
from deployments.signing.signed import key_for

TIMEOUT_S: Final = 2.0
"""Of each answer. Nobody waits for it but the thread that shares."""

MAX_LINES: Final = 8192
"""Of an index, roughly, however small its states are."""

_PAGE: Final = 512
_GENERATION: Final = re.compile(rb"[0-9a-f]{16,64}")
_NAME: Final = re.compile(rb"[0-9a-f]{32}")
_BYTES: Final = re.compile(rb"[0-9]{1,9}")
_START: Final = (0, 0)

Moment = tuple[int, int]
"""Where a line stands in the index: Redis' clock in milliseconds, and a count within one of them."""


@dataclass(frozen=True, slots=True)
class IndexLine:
    """What the index says of a state: its `name`, the `writer` that put it there, and its `bytes`."""

    name: str
    writer: str
    bytes: int


class SharedLog:
    """Follows one family's index, and writes to it. Used on one thread.

    `damaged` counts what was found there and is not used. Methods raise RedisError and OSError where Redis does not do
    what it is asked.
    """

    def __init__(self, spec: SharingSpec) -> None:
        """Raises ValueError where the key or the password is not where it should be."""
        self.damaged = 0
        self.generation = ""
        self.writer = secrets.token_hex(16)
        self._spec = spec
        key, password = spec.read_secrets()
        self._key = key_for("states", key)
        self._redis: Any = Redis.from_url(
            spec.url,
            password=password,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
        )
        self._lines: OrderedDict[Moment, IndexLine] = OrderedDict()
        self._bytes = 0
        self._read_up_to = _START

    def keep_up(self) -> bool:
        """Finds out the generation of now. Returns True if it is another than it was: then all is to be forgotten."""
        found = self._read_generation()
        if found == self.generation:
            self._mend_index()
            return False
        forgotten = [self._key_of(name) for name in ("index", *(line.name for line in self._lines.values()))]
        is_first, self.generation = not self.generation, found
        self._forget_lines()
        if is_first:
            return False
        # Whatever becomes of this: nobody finds them any more, and they end by themselves.
        with suppress(RedisError, OSError):
            self._redis.unlink(*forgotten)
        return True

    def put(self, kind: str, saved: SavedState) -> bool:
        """Writes a state. Returns False if it is too large."""
        name = secrets.token_hex(16)
        data = pack(self._key_of(name), kind, saved, self._key)
        if len(data) > MAX_STATE_BYTES:
            return False
        line: Any = {"name": name, "writer": self.writer, "bytes": len(data)}
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._key_of(name), data, ex=self._spec.ttl_s)
            pipe.xadd(self._key_of("index"), line, maxlen=MAX_LINES, approximate=True)
            pipe.expire(self._key_of("index"), self._spec.ttl_s)
            pipe.execute()
        return True

    def read_new(self) -> list[IndexLine]:
        """Reads the lines that have come since the last time, the oldest first."""
        index, new = self._key_of("index"), []
        newest = self._redis.xrevrange(index, count=1)
        if not newest or _moment_of(newest[0][0]) < self._read_up_to:
            # Redis has lost it, and others may have begun it anew.
            self._forget_lines()
        while page := self._redis.xrange(index, min=f"({_text_of(self._read_up_to)}", count=_PAGE):
            for moment, fields in page:
                self._read_up_to = _moment_of(moment)
                if (line := self._parse(fields)) is not None:
                    self._lines[self._read_up_to] = line
                    self._bytes += line.bytes
                    new.append(line)
        return new

    def fetch(self, line: IndexLine) -> tuple[str, SavedState] | None:
        """Returns that state after its kind; None where it has gone, or is not what was put there."""
        place = self._key_of(line.name)
        try:
            data = self._redis.getrange(place, 0, MAX_STATE_BYTES)
            if not data:
                return None
            if len(data) <= MAX_STATE_BYTES:
                return unpack(place, data, self._key)
        except BadState:
            pass
        except ResponseError as error:
            if not _is_wrong_type(error):
                raise
        self.damaged += 1
        return None

    def drop_oldest(self) -> list[IndexLine]:
        """Drops the lines that are too old, or more than there may be, and returns them."""
        oldest_ms = self._read_up_to[0] - 1000 * self._spec.ttl_s
        gone = []
        while self._lines and (self._bytes > self._spec.max_bytes or next(iter(self._lines))[0] < oldest_ms):
            _, line = self._lines.popitem(last=False)
            self._bytes -= line.bytes
            gone.append(line)
        return gone

    def remove(self, lines: list[IndexLine]) -> None:
        """Removes the states of lines that were dropped, for everybody, and what is before them in the index."""
        if lines:
            first = next(iter(self._lines), (self._read_up_to[0] + 1, 0))
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.unlink(*(self._key_of(line.name) for line in lines))
                pipe.xtrim(self._key_of("index"), minid=_text_of(first), approximate=False)
                pipe.execute()

    def close(self) -> None:
        """Closes its connections."""
        self._redis.close()

    def _read_generation(self) -> str:
        key = generation_key(self._spec.prefix)
        for _ in range(2):
            found = self._read_word(key)
            if found is not None and _GENERATION.fullmatch(found):
                return found.decode()
            if found is None or found:
                self.damaged += 1
            # Nobody has begun, or Redis has lost it: whoever knows one goes on with it.
            self._redis.set(key, self.generation or secrets.token_hex(8), nx=found == b"")
        raise ResponseError("the generation of states cannot be written")

    def _read_word(self, key: str) -> bytes | None:
        """Returns a short text; nothing where there is none, and None where something else is in its place."""
        try:
            found: bytes = self._redis.getrange(key, 0, 64)
            return found
        except ResponseError as error:
            if not _is_wrong_type(error):
                raise
            return None

    def _mend_index(self) -> None:
        """Removes what has taken the index' place: every write would fail."""
        index = self._key_of("index")
        if self._redis.type(index) not in (b"stream", b"none"):
            self.damaged += 1
            self._redis.unlink(index)

    def _parse(self, fields: dict[bytes, bytes]) -> IndexLine | None:
        """Returns a line; None, and counts it, where it has not our form."""
        name, writer, size = (fields.get(each, b"") for each in (b"name", b"writer", b"bytes"))
        if not _NAME.fullmatch(name) or not _NAME.fullmatch(writer) or not _BYTES.fullmatch(size):
            self.damaged += 1
            return None
        return IndexLine(name.decode(), writer.decode(), int(size))

    def _forget_lines(self) -> None:
        self._lines.clear()
        self._bytes, self._read_up_to = 0, _START

    def _key_of(self, name: str) -> str:
        return f"{self._spec.prefix}states:{self.generation}:{self._spec.family}:{name}"


def newest_within(lines: list[IndexLine], most_bytes: int) -> list[IndexLine]:
    """Returns the last lines of those that have at most `most_bytes` together, in their order."""
    total = 0

    def fits(line: IndexLine) -> bool:
        nonlocal total
        total += line.bytes
        return total <= most_bytes

    return list(takewhile(fits, reversed(lines)))[::-1]


def _moment_of(text: bytes) -> Moment:
    milliseconds, _, count = text.partition(b"-")
    return int(milliseconds), int(count)


def _text_of(moment: Moment) -> str:
    return f"{moment[0]}-{moment[1]}"


def _is_wrong_type(error: ResponseError) -> bool:
    return "WRONGTYPE" in str(error)
