"""A server's answers, for the client: images, entries of batches, and errors."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image


class DarkroomError(Exception):
    """The server refused or failed, or could not be reached: then `status` is 0 and `code` says how (`unreachable`).

    `field` names the offending parameter, if there is one. An image that a safety policy kept back has the `code`
    `content_filtered`. `retryable`: the same request may succeed later;
    `retry_after` is in how many seconds, where the server says so. `images` are those of the request that were made all
    the same.
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
class ServedImage:
    """An image as the server made it; `data` is the file's content.

    `safety` is what checkers found, if the model's images are checked: its `status` is passed, flagged or unchecked.
    """

    index: int
    seed: int
    format: str
    width: int
    height: int
    data: bytes = field(repr=False)
    safety: Mapping[str, Any] | None = None

    @classmethod
    def from_json(cls, image: Mapping[str, Any], data: bytes | None = None) -> "ServedImage":
        """Reads an entry of an answer's `images`, or the data of an `image` event; `data` if that came separately."""
        return cls(
            index=image["index"],
            seed=image["seed"],
            format=image["format"],
            width=image["width"],
            height=image["height"],
            data=base64.b64decode(image["data"]) if data is None else data,
            safety=image.get("safety"),
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


def error_of(body: Mapping[str, Any], status: int = 500) -> DarkroomError:
    """Reads a problem+json body, or whatever something else on the way has answered."""
    error = body.get("error")
    details = error if isinstance(error, dict) else {}
    status = body.get("status", status)
    return DarkroomError(
        status,
        details.get("code", "http_error"),
        details.get("message", f"the server answered {status}"),
        details.get("param"),
        body.get("request_id", ""),
        body.get("retryable", False),
    )


def failure_of(answer: Mapping[str, Any]) -> DarkroomError | None:
    """The error of the first image that an answer lacks, if any."""
    for failure in answer.get("failures", ()):
        retryable = failure["retryable"]
        return DarkroomError(200, failure["code"], failure["message"], request_id=answer["id"], retryable=retryable)
    return None


def images_of(answer: Mapping[str, Any]) -> list[ServedImage]:
    """Reads the images of an answer. Raises the error of the first one that it lacks, with the others."""
    images = [ServedImage.from_json(image) for image in answer["images"]]
    if failure := failure_of(answer):
        failure.images = tuple(images)
        raise failure
    return images
