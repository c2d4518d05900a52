"""Specifies what replicas share, and where. Without torch and Redis: the driver makes it, and replicas go by it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from deployments.signing.secret_source import SecretSource
from deployments.signing.signed import KEY_CHARACTERS

STATE_FORM: Final = 1
"""Raise it with any change of what is in a state: versions at work side by side must not read each other's."""


@dataclass(frozen=True, slots=True)
class SharingSpec:
    """Where replicas share their states: in the Redis at `url`, under keys that begin with `prefix`.

    Only engines of the same `family` share: a digest of their models, and of all settings that images depend on. States
    are signed with `key`; `password` is Redis'. A family has at most `max_bytes` there; a state is kept for `ttl_s`
    seconds.
    """

    url: str
    prefix: str
    family: str
    key: SecretSource
    password: SecretSource | None = None
    max_bytes: int = 2**28
    ttl_s: int = 3600

    def for_files(self, digests: Sequence[str]) -> "SharingSpec":
        """Returns the same for engines whose models' local files have these `digests`: a family of their own."""
        family = hashlib.sha256(json.dumps([self.family, *digests]).encode()).hexdigest()
        return replace(self, family=family)

    def read_secrets(self) -> tuple[bytes, str | None]:
        """Reads the key and the password. Raises ValueError where one is not where it should be."""
        password = None if self.password is None else self.password.read("redis: password")
        return self.key.read("redis: key", KEY_CHARACTERS).encode(), password


def generation_key(prefix: str) -> str:
    """Returns the key in Redis of the states' generation: a word in hexadecimal digits.

    Whoever writes another one there has all replicas forget all states.
    """
    return f"{prefix}states:generation"
