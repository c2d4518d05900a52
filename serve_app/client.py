"""A client of a Darkroom server, for Python programs and the command line. No torch, no Ray."""

import base64
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

from deployments.engine.inputs import Uploads
from deployments.engine.params import GenerationParams

LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))

BASE = "/ads/v2/diffusion"
HEALTH = f"{BASE}/health"

# The server says something every 15 seconds in a stream; a JSON answer comes when all its images are made.
CONNECT_SECONDS = 10.0
STREAM_SECONDS = 60.0
ANSWER_SECONDS = 600.0


class DarkroomError(Exception):
    """The server refused or failed, or there is none: then `status` is 0 and `code` says how (`unreachable`).

    `field` names the parameter that is to blame, where there is one. `retryable`: the same request may succeed later.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        field: str | None = None,
        request_id: str = "",
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.field, self.request_id, self.retryable = field, request_id, retryable


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream: `name` is progress, preview, image, failed or done."""

    name: str
    data: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServedImage:
    """An image as the server made it; `data` is the file's content."""

    index: int
    seed: int
    format: str
    width: int
    height: int
    data: bytes = field(repr=False)

    @classmethod
    def from_json(cls, image: dict[str, Any]) -> "ServedImage":
        """From an entry of an answer's `images`, or from the data of an `image` event."""
        return cls(
            index=image["index"],
            seed=image["seed"],
            format=image["format"],
            width=image["width"],
            height=image["height"],
            data=base64.b64decode(image["data"]),
        )

    def picture(self) -> Image.Image:
        """The decoded image."""
        picture = Image.open(io.BytesIO(self.data), formats=[self.format.upper()])
        picture.load()
        return picture


class DarkroomClient:
    """Asks a server for images. Use it as a context manager, or close it. May be shared by threads.

    `timeout` is how many seconds a whole JSON answer may take; a stream only has to say something now and then.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        timeout: float = ANSWER_SECONDS,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        with _reachable():
            # A company's proxy cannot reach this machine's loopback, and httpx would ask it all the same.
            local = httpx.URL(base_url).host in LOOPBACK
            self._http = httpx.Client(base_url=base_url, transport=transport, trust_env=not local)
        self._answer_timeout = httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
        self._stream_timeout = httpx.Timeout(STREAM_SECONDS, connect=min(timeout, CONNECT_SECONDS))

    def __enter__(self) -> "DarkroomClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def generate(
        self, params: GenerationParams | None = None, *, uploads: Uploads | None = None, **fields: Any
    ) -> list[ServedImage]:
        """The images, in order. Give `params`, or their fields as keywords.

        With `uploads` they start from pictures: image-to-image, inpainting, ControlNet. Raises DarkroomError, also
        where only some of the images could be made.
        """
        door, options = asking(_body(params, fields), uploads)
        with _reachable():
            response = self._http.post(door, timeout=self._answer_timeout, **options)
        _check(response)
        answer = response.json()
        for failure in answer.get("failures", ()):
            request_id = response.headers.get("x-request-id", "")
            raise DarkroomError(200, failure["code"], failure["message"], request_id=request_id)
        return [ServedImage.from_json(image) for image in answer["images"]]

    def stream(
        self,
        params: GenerationParams | None = None,
        *,
        uploads: Uploads | None = None,
        previews: int = 0,
        **fields: Any,
    ) -> Iterator[ServerEvent]:
        """The request's events as they come; closing the iterator cancels the request. Raises DarkroomError."""
        door, options = asking(_body(params, fields), uploads)
        options |= {
            "params": {"previews": previews},
            "headers": {"Accept": "text/event-stream"},
            "timeout": self._stream_timeout,
        }
        with _reachable(), self._http.stream("POST", door, **options) as response:
            if response.is_error:
                response.read()
            _check(response)
            yield from _until_done(parse_events(response.iter_lines()))

    def health(self) -> dict[str, Any]:
        """What the server says of itself, healthy or not."""
        with _reachable():
            health: dict[str, Any] = self._http.get(HEALTH, timeout=self._answer_timeout).json()
        return health


def asking(body: dict[str, Any], uploads: Uploads | None) -> tuple[str, dict[str, Any]]:
    """Which door takes this, and httpx' arguments for it: JSON for text, a form where pictures come along.

    Raises ValueError for uploads without a file.
    """
    if uploads is None:
        return f"{BASE}/text-to-image", {"json": body}
    if uploads.image is None and uploads.mask is None and not uploads.hints:
        raise ValueError("the uploads hold no file: give them an image or hints, or leave them out")
    door = "controlnet" if uploads.hints else uploads.task
    image_name = "image" if door == "inpaint" else "init_image"
    named = [(image_name, uploads.image), ("mask", uploads.mask), *(("control_image", hint) for hint in uploads.hints)]
    said = {"mask_type": uploads.mask_type, "preprocess": uploads.preprocess or None, "fit": uploads.fit}
    data = {"params": json.dumps(body | {name: value for name, value in said.items() if value is not None})}
    files = [(name, (name, content)) for name, content in named if content is not None]
    return f"{BASE}/{door}", {"data": data, "files": files}


def parse_events(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """Server-sent events from a stream's lines. Comments are left out."""
    name, data = "message", list[str]()
    for line in lines:
        field_name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line and data:
            yield ServerEvent(name, json.loads("\n".join(data)))
        if not line:
            name, data = "message", []
        elif field_name == "event":
            name = value
        elif field_name == "data":
            data.append(value)


def _until_done(events: Iterator[ServerEvent]) -> Iterator[ServerEvent]:
    done = False
    # Read to the very end: a connection that is closed earlier looks to the server like a caller that left.
    for event in events:
        if event.name == "error":
            raise _error(event.data)
        done = event.name == "done"
        yield event
    if not done:
        message = "the server ended the stream before the request was done"
        raise DarkroomError(0, "connection_lost", message, retryable=True)


def _body(params: GenerationParams | None, fields: dict[str, Any]) -> dict[str, Any]:
    if params is not None and fields:
        raise TypeError("give params or their fields, not both")
    # What was not set is left to the server, whose defaults depend on its models.
    return fields if params is None else params.model_dump(mode="json", exclude_unset=True)


@contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except httpx.ConnectError:
        message = "no server answers at this address; `make serve` starts one"
        raise DarkroomError(0, "unreachable", message, retryable=True) from None
    except httpx.TimeoutException:
        raise DarkroomError(0, "timeout", "the server took too long to answer", retryable=True) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise DarkroomError(0, "invalid_url", "the server's address must be like http://127.0.0.1:8000") from None
    except httpx.TransportError:
        raise DarkroomError(0, "connection_lost", "the connection was lost", retryable=True) from None


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        body = response.json()
    except ValueError:
        body = {}
    raise _error(body if isinstance(body, dict) else {}, response.status_code)


def _error(body: dict[str, Any], status: int = 500) -> DarkroomError:
    """From a problem+json body, or from what something else on the way answered."""
    error = body.get("error")
    said = error if isinstance(error, dict) else {}
    status = body.get("status", status)
    return DarkroomError(
        status,
        said.get("code", "http_error"),
        said.get("message", f"the server answered {status}"),
        said.get("param"),
        body.get("request_id", ""),
        body.get("retryable", False),
    )
