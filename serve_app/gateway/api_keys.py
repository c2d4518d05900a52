"""API keys: who may ask, for what, and how much. The server knows their hashes only.

A key is 256 random bits, so plain SHA-256 is enough: bcrypt and the like slow down the guessing of passwords that
people think up, and nobody guesses 256 bits.
"""

import hmac
import json
import logging
import secrets
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from deployments.engine.protocol.params import Priority
from serve_app.config.deployments import Name
from serve_app.config.errors import ConfigError, describe_errors, parse_yaml
from serve_app.config.secret import Secret
from serve_app.config.sections import Limits, TrainingAllowance
from serve_app.config.strict import Strict

log = logging.getLogger(__name__)

Scope = Literal["generate", "train", "operate"]
Clock = Callable[[], float]

# A changed file is noticed at the first request after this many seconds.
RELOAD_S: Final = 3.0

# Lets scanners find keys that were published by mistake.
_PREFIX: Final = "dk_"


class Key(Strict):
    """The permissions of one key. `priority` is the highest allowed; `limits` override those for all keys, and so
    does `training` for what one training may take.

    Keys of one `tenant` share its part of the engines, its cache, and its jobs.
    """

    id: Name
    hash: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    tenant: Name
    scopes: frozenset[Scope] = Field(default=frozenset({"generate"}), min_length=1)
    priority: Priority = "normal"
    limits: Limits = Limits()
    training: TrainingAllowance | None = None

    def to_line(self) -> str:
        """Formats the key as a line of the key file."""
        entry = self.model_dump(exclude={"limits", "training"}) | {"scopes": sorted(self.scopes)}
        return f"- {json.dumps(entry)}"


_KEYS: Final = TypeAdapter(tuple[Key, ...])


def generate_key() -> str:
    """Generates a new key."""
    return _PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """The key's hash, as the key file has it."""
    return f"sha256:{sha256(key.encode()).hexdigest()}"


def parse_keys(text: str) -> tuple[Key, ...]:
    """Parses the keys in a YAML or JSON list. Raises ConfigError, which never repeats the content.

    Refuses an empty list: that is what a file looks like while it is being written.
    """
    try:
        keys = _KEYS.validate_python(parse_yaml(text, "keys", tell_content=False))
    except ValidationError as error:
        lines = [
            f"keys{'' if line.startswith('[') else ': '}{line}" for line in describe_errors(error, tell_values=False)
        ]
        raise ConfigError("\n".join(lines)) from None
    if not keys:
        raise ConfigError("keys: there is none in the list")
    for what, values in (("id", [key.id for key in keys]), ("hash", [key.hash for key in keys])):
        if len(set(values)) < len(values):
            raise ConfigError(f"keys: two of them have the same {what}")
    return keys


class Keyring:
    """The current keys. A key file is read again when it has changed; if it is broken then, the old keys stay.

    Used on one event loop. Raises ConfigError if there are no valid keys at the start.
    """

    def __init__(self, source: Secret, clock: Clock = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._looked = clock()
        self._stamp = self._read_stamp()
        self._keys = parse_keys(source.read("keys"))
        self._complaint = ""

    def find(self, given: str) -> Key | None:
        """Returns the key that was given, or None if it is not one."""
        self._reload_if_changed()
        digest, found = hash_of(given), None
        # Compares all, each in constant time: the duration must not reveal how close a guess came.
        for key in self._keys:
            if hmac.compare_digest(key.hash, digest):
                found = key
        return found

    def _reload_if_changed(self) -> None:
        if self._source.file is None or self._clock() - self._looked < RELOAD_S:
            return
        self._looked = self._clock()
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        try:
            self._keys = parse_keys(self._source.read("keys"))
        except ConfigError as error:
            if str(error) != self._complaint:
                log.error("the keys of before stay in use: %s", error)
            self._complaint = str(error)
        else:
            self._stamp, self._complaint = stamp, ""
            log.info("%d keys are in use now", len(self._keys))

    def _read_stamp(self) -> tuple[int, ...] | None:
        """A value that changes whenever the file does; None if the file is missing."""
        try:
            state = Path(self._source.file or "").stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_ino, state.st_size
