"""One thing to be sent to a caller's address, as it is kept until it has arrived or was given up."""

import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import Field

from serve_app.config.strict import Strict

Kind = Literal["webhook", "upload"]
KINDS: Final[tuple[Kind, ...]] = ("webhook", "upload")

# Without a full stop, which a webhook's signature puts behind it.
MESSAGE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Message(Strict):
    """A webhook has its `body`; an upload is image file `position` of the job's entry `entry`, with `headers`.

    `id` is the same at every try, and however often the message is made. `place` is what it is called in the job:
    `settlements` are found under it. `created` is in seconds since 1970.
    """

    id: str = Field(pattern=f"^{MESSAGE_ID.pattern}$")
    kind: Kind
    job: str
    tenant: str
    place: str
    url: str
    created: float
    attempts: int = 0
    body: str = ""
    headers: dict[str, str] = Field(default_factory=dict)
    entry: int = 0
    position: int = 0

    @property
    def host(self) -> str:
        """The part of its address that may be logged: what follows may be a secret."""
        return urlsplit(self.url).netloc


@dataclass(frozen=True, slots=True)
class Claim:
    """A message that is this process' to send, until `until`: a time of the outbox' own, which tells claims apart."""

    message: Message
    until: int
