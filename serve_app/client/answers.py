"""A server's answers, for the client: images, entries of batches, and errors."""

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from PIL import Image

from serve_app.retry_after import read_retry_after

# What a proxy answers for a server that it cannot reach now, or that has too much to do.
_PASSES: Final = frozenset((429, 502, 503, 504))

_CANCELLED: Final = 499


class DarkroomError(Exception):
    """The server refused or failed, or could not be reached: then `status` is 0 and `code` says how (`unreachable`).

    `untrusted_certificate` and `tls_failed` are codes of a server that answers, but not as https:// addresses need it.
    `invalid_answer` is the code of what no Darkroom server answers, a proxy's page for example; `content_filtered` that
    of an image that a safety policy kept back. `field` names the offending parameter, if there is one. `retryable`: the
    same request may succeed later; `retry_after` is in how many seconds, where the server says so. `images` are those
    of the request that were made all the same.
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
        self.retry_after: float | None = None
        self.images: tuple[ServedImage, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """An answer, received as a whole."""

    status: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that it is; an empty one where it is something else."""
        return _parse_object(self.content) or {}

    def json(self, *needed: str) -> dict[str, Any]:
        """Returns the JSON object that it is. Raises DarkroomError if it is none, or lacks one of the keys `needed`."""
        return read_object(self.content, *needed, status=self.status)

    def raise_for_status(self) -> None:
        """Raises DarkroomError unless it is a success."""
        if self.is_success:
            return
        where = self.headers.get("location")
        error = error_of(self.body, self.status, f", a redirect to {where!r}; use that address" if where else "")
        error.retry_after = read_retry_after(self.headers.get("retry-after", ""))
        raise error


def read_object(text: str | bytes, *needed: str, status: int = 0) -> dict[str, Any]:
    """Parses a JSON object. Raises DarkroomError if it is none, or lacks one of the keys `needed`."""
    found = _parse_object(text)
    if found is None or not found.keys() >= set(needed):
        raise _invalid_answer(status)
    return found


def _invalid_answer(status: int) -> DarkroomError:
    message = "what was answered is not what a Darkroom server answers; is there a proxy before it?"
    return DarkroomError(status, "invalid_answer", message)


@contextmanager
def reading_answer() -> Iterator[None]:
    """Raises DarkroomError where the block finds that an answer lacks something, or has something else in its place."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError):
        raise _invalid_answer(0) from None


def _parse_object(text: str | bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@dataclass(frozen=True, slots=True)
class ServedImage:
    """An image as the server made it; `data` is the file's content.

    `safety` is what checkers found, if the model's images are checked: its `status` is passed, flagged or unchecked.
    `continued` says after how many `steps` it took over another image's state, and the `distance` of their prompts.
    """

    index: int
    seed: int
    format: str
    width: int
    height: int
    data: bytes = field(repr=False)
    safety: Mapping[str, Any] | None = None
    continued: Mapping[str, Any] | None = None

    @classmethod
    @reading_answer()
    def from_json(cls, image: Mapping[str, Any], data: bytes | None = None) -> "ServedImage":
        """Reads an entry of an answer's `images`, or the data of an `image` event; `data` if that came separately.

        Raises DarkroomError.
        """
        return cls(
            index=image["index"],
            seed=image["seed"],
            format=image["format"],
            width=image["width"],
            height=image["height"],
            data=base64.b64decode(image["data"]) if data is None else data,
            safety=image.get("safety"),
            continued=image.get("continued"),
        )

    def picture(self) -> Image.Image:
        """Decodes the image."""
        picture = Image.open(io.BytesIO(self.data), formats=[self.format.upper()])
        picture.load()
        return picture


class WatchedImages:
    """The images of a request whose events are watched as they come."""

    def __init__(self) -> None:
        self._images: list[ServedImage] = []
        self._failures: list[DarkroomError] = []

    @reading_answer()
    def add(self, name: str, data: Mapping[str, Any]) -> None:
        """Takes note of the event of that name."""
        if name == "image":
            self._images.append(ServedImage.from_json(data))
        elif name == "failed":
            self._failures.append(DarkroomError(200, data["code"], data["message"], retryable=data["retryable"]))

    def images(self) -> list[ServedImage]:
        """Returns the images in order. Raises the first failure, if there was one."""
        images = sorted(self._images, key=lambda image: image.index)
        if self._failures:
            self._failures[0].images = tuple(images)
            raise self._failures[0]
        return images


@dataclass(frozen=True, slots=True)
class ServedEntry:
    """The result of a batch's entry: its images, or the `error` in place of all or some of them."""

    index: int
    images: tuple[ServedImage, ...]
    error: DarkroomError | None = None


def entries_in_order(entries: Iterable[ServedEntry], count: int) -> list[ServedEntry]:
    """Returns one entry for each of `count` requests: a `cancelled` error for those that its job never made."""
    made = {entry.index: entry for entry in entries}
    message = "the batch was cancelled before this entry was made"
    return [
        made.get(index) or ServedEntry(index, (), DarkroomError(_CANCELLED, "cancelled", message))
        for index in range(count)
    ]


def timed_out() -> DarkroomError:
    """The error of a call whose time is over."""
    return DarkroomError(0, "timeout", "the server took too long to answer", retryable=True)


def error_of(body: Mapping[str, Any], status: int = 500, more: str = "") -> DarkroomError:
    """Reads a problem+json body, or whatever something else on the way has answered, with `more` to say of that."""
    error = body.get("error")
    details = error if isinstance(error, dict) else {}
    if isinstance(body.get("status"), int):
        status = body["status"]
    return DarkroomError(
        status,
        details.get("code", "http_error"),
        details.get("message", f"the server answered {status}{more}"),
        details.get("param"),
        body.get("request_id", ""),
        body.get("retryable", status in _PASSES),
    )


def is_elsewhere(error: DarkroomError) -> bool:
    """Whether it is the server that cannot be reached, rather than something that the server does not have."""
    return error.code in ("unreachable", "timeout")


@reading_answer()
def failure_of(answer: Mapping[str, Any]) -> DarkroomError | None:
    """The error of the first image that an answer lacks, if any."""
    for failure in answer.get("failures", ()):
        retryable = failure["retryable"]
        return DarkroomError(200, failure["code"], failure["message"], request_id=answer["id"], retryable=retryable)
    return None


@reading_answer()
def images_of(answer: Mapping[str, Any]) -> list[ServedImage]:
    """Reads the images of an answer. Raises the error of the first one that it lacks, with the others."""
    images = [ServedImage.from_json(image) for image in answer["images"]]
    if failure := failure_of(answer):
        failure.images = tuple(images)
        raise failure
    return images
