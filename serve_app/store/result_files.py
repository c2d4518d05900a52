"""Keeps finished images for a while, for answers that hold an address instead of the image.

An address is signed and expires; whoever has it may fetch the image, without a key, from any ingress: the images lie in
Redis. Without Redis they lie in this process, which then has to be the only one.
"""

import base64
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from cachetools import TTLCache

from deployments.engine.protocol.errors import Overloaded
from deployments.signing.signed import BadSignature, sign, verify
from serve_app.config.sections import ResultUrlsConfig
from serve_app.store.redis import RedisGone, RedisTier
from serve_app.store.redis_values import Damaged, content, number

MAX_FILE_BYTES: Final = 64 * 1024 * 1024

LEAST_FILE_BYTES: Final = 100
"""No PNG, WebP or JPEG file of a picture has less."""

# The bytes that are kept are counted in slots of this share of the time that they are kept.
_SLOTS: Final = 8

# More than a call's usual time: an image has to come through.
_TRANSFER_S: Final = 5.0

# Counts bytes before they are there, in one step: whoever else asks at the same time sees them. What is no number of
# ours is removed. KEYS: the slots, this moment's first. ARGV: bytes, the most of all, the seconds that a slot is kept.
_RESERVE: Final = """
local held = 0
for _, key in ipairs(KEYS) do
  local kind = redis.call('type', key).ok
  local text = kind == 'string' and redis.call('getrange', key, 0, 15) or ''
  local bytes = tonumber(string.match(text, '^%d+$'))
  if kind ~= 'none' and not bytes then redis.call('del', key) end
  held = held + (bytes or 0)
end
if held + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return 0 end
redis.call('incrby', KEYS[1], ARGV[1])
redis.call('expire', KEYS[1], ARGV[3])
return 1
"""

# Removes a file and what is counted for it. KEYS: file, slot. ARGV: bytes.
_RELEASE: Final = """
redis.call('del', KEYS[1])
local held = tonumber(redis.call('get', KEYS[2]) or '0') or 0
if held > 0 then redis.call('decrby', KEYS[2], math.min(held, tonumber(ARGV[1]))) end
return 1
"""


class BadAddress(Exception):
    """Not an address that was given out, or one that has expired."""


@dataclass(frozen=True, slots=True)
class FileAddress:
    """The part of an address that says which file, until when (seconds since 1970), and that this was given out."""

    file_id: str
    expires: int
    signature: str


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A finished image's file, and its format (png, webp, jpeg)."""

    data: bytes
    format: str


class ResultFiles:
    """Used on one event loop. Holds at most `max_bytes` at a time, and refuses more."""

    def __init__(
        self, config: ResultUrlsConfig, redis: RedisTier | None, clock: Callable[[], float] = time.time
    ) -> None:
        self.public_url = config.public_url
        self._ttl_s, self._max_bytes = config.ttl_s, config.max_bytes
        self._redis, self._clock = redis, clock
        self._key = secrets.token_bytes(32) if redis is None else redis.signing_key("result urls")
        self._here: TTLCache[str, ResultFile] = TTLCache(
            config.max_bytes, config.ttl_s, timer=clock, getsizeof=lambda file: len(file.data)
        )

    async def check_room(self, files: int) -> None:
        """Raises Overloaded where so many images certainly find no room, however small: before they are made."""
        if await self._held_bytes() + files * LEAST_FILE_BYTES > self._max_bytes:
            raise _full()

    async def _held_bytes(self) -> int:
        """Returns the bytes of all images that are kept. Raises Overloaded without Redis."""
        if self._redis is None:
            self._here.expire()
            return int(self._here.currsize)
        try:
            held = await self._redis.call(lambda connection: connection.mget(self._slots(self._redis)))
        except RedisGone:
            raise _gone() from None
        return sum(map(number, held))

    def _slots(self, redis: RedisTier | None) -> list[str]:
        """Returns where the bytes of the last images are counted, the slot of now first."""
        assert redis is not None
        slot = int(self._clock() * _SLOTS / self._ttl_s)
        return [f"{redis.prefix}files:{slot - back}" for back in range(_SLOTS + 1)]

    def seconds_left(self, address: FileAddress) -> int:
        """Returns for how many more seconds an address leads to its file."""
        return max(0, int(address.expires - self._clock()))

    async def put(self, file: ResultFile) -> FileAddress:
        """Keeps a file, and returns where it is found. Raises Overloaded where there is no room, or no Redis."""
        (address,) = await self.put_all([file])
        return address

    async def put_all(self, files: Sequence[ResultFile]) -> list[FileAddress]:
        """Keeps all of `files`, or none where one cannot be kept, or the caller leaves. Raises Overloaded."""
        kept: list[_Kept] = []
        try:
            for file in files:
                kept.append(await self._keep(file))
        except BaseException:
            for each in kept:
                await self._remove(each)
            raise
        return [each.address for each in kept]

    async def _keep(self, file: ResultFile) -> "_Kept":
        file_id = secrets.token_urlsafe(16)
        expires = int(self._clock() + self._ttl_s)
        address = FileAddress(file_id, expires, self._sign(file_id, expires))
        if self._redis is not None:
            return await self._keep_in_redis(self._redis, address, file)
        if len(file.data) > MAX_FILE_BYTES or await self._held_bytes() + len(file.data) > self._max_bytes:
            raise _full()
        self._here[file_id] = file
        return _Kept(address)

    async def _remove(self, kept: "_Kept") -> None:
        """Removes a file, and gives back its bytes."""
        if self._redis is None:
            self._here.pop(kept.address.file_id, None)
            return
        place = self._place(self._redis, kept.address.file_id)
        with suppress(RedisGone):
            await self._redis.call(lambda redis: redis.eval(_RELEASE, 2, place, kept.slot, kept.size))

    async def get(self, address: FileAddress) -> ResultFile | None:
        """Returns the file; None if it is not there any more. Raises BadAddress, and Overloaded without Redis."""
        if not hmac.compare_digest(self._sign(address.file_id, address.expires).encode(), address.signature.encode()):
            raise BadAddress
        if address.expires <= self._clock():
            raise BadAddress
        if self._redis is None:
            return self._here.get(address.file_id)
        place = self._place(self._redis, address.file_id)
        most = MAX_FILE_BYTES + 4096
        try:
            found = await self._redis.call(lambda redis: redis.getrange(place, 0, most), _TRANSFER_S)
            data = content(found, most)
        except RedisGone:
            raise _gone() from None
        except Damaged:
            data = b""
        return None if data is None else self._unpack(self._redis, place, data)

    def _unpack(self, redis: RedisTier, place: str, data: bytes) -> ResultFile | None:
        try:
            image_format, (image,) = verify(place, data, self._key)
        except (BadSignature, ValueError):
            redis.note_damage("a finished image")
            return None
        return ResultFile(image, str(image_format))

    async def _keep_in_redis(self, redis: RedisTier, address: FileAddress, file: ResultFile) -> "_Kept":
        place, seconds = self._place(redis, address.file_id), max(1, round(self._ttl_s))
        packed = sign(place, file.format, (file.data,), self._key)
        slots = self._slots(redis)
        kept = _Kept(address, slots[0], len(packed))
        if kept.size > MAX_FILE_BYTES:
            raise _full()
        amounts = (kept.size, self._max_bytes, 2 * seconds)
        try:
            # An answer that is lost leaves bytes counted, and none uncounted, until their slot is old.
            has_room = await redis.call(lambda connection: connection.eval(_RESERVE, len(slots), *slots, *amounts))
        except RedisGone:
            raise _gone() from None
        if not has_room:
            raise _full()
        try:
            await redis.call(lambda connection: connection.set(place, packed, ex=seconds), _TRANSFER_S)
        except BaseException as error:
            await self._remove(kept)
            if isinstance(error, RedisGone):
                raise _gone() from None
            raise
        return kept

    def _place(self, redis: RedisTier, file_id: str) -> str:
        return f"{redis.prefix}file:{file_id}"

    def _sign(self, file_id: str, expires: int) -> str:
        mac = hmac.digest(self._key, f"{file_id}\n{expires}".encode(), "sha256")
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class _Kept:
    """A file that is kept, and in which slot how many bytes are counted for it."""

    address: FileAddress
    slot: str = ""
    size: int = 0


def _gone() -> Overloaded:
    return Overloaded("the images are kept in Redis, which does not answer")


def _full() -> Overloaded:
    return Overloaded("there is no room for more images that an address leads to; ask for b64_json, or come back later")
