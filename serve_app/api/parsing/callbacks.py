"""The fields of a batch with which its caller asks to be called back, and their rules."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn

from pydantic import Field

from deployments.engine.protocol.fields import StrictFields
from serve_app.api.problems import Fault, Problem, pointer_to
from serve_app.callbacks.addresses import AddressRefused, AddressRules
from serve_app.callbacks.callbacks import Callbacks
from serve_app.jobs.callbacks import JOB_EVENTS, CallbackRequest, JobEvent, fill_in

MAX_HEADERS: Final = 16
MAX_HEADER_VALUE: Final = 1024

# What stores of files know, and nothing that another server could take for a caller's right to something.
_HEADER_NAME: Final = re.compile(r"x-(?:amz|goog|ms|oss|obs|cos)-[a-z0-9-]{1,64}|cache-control|content-disposition")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]*")


class CallbackFields(StrictFields):
    """`webhook_url` hears of `webhook_events`; images are put to `upload_url` or `upload_urls`."""

    webhook_url: str | None = None
    webhook_events: list[JobEvent] | None = Field(default=None, min_length=1)
    upload_url: str | None = None
    upload_urls: list[list[str] | None] | None = None
    upload_headers: dict[str, str] | None = None

    @property
    def asks_for_callbacks(self) -> bool:
        given = (self.webhook_url, self.webhook_events, self.upload_url, self.upload_urls, self.upload_headers)
        return any(each is not None for each in given)


def read_callbacks(
    fields: CallbackFields, offered: Callbacks | None, images: Mapping[int, int], entries: int, base_url: str
) -> CallbackRequest:
    """Returns what the caller of a batch of `entries` asks for; `images` are how many each valid entry has.

    Links begin with `base_url`, or with the configuration's. Raises Problem, which names the field and the rule. Looks
    up no name: what an address means counts when it is called.
    """
    if fields.webhook_url is None and fields.webhook_events is not None:
        _refuse("webhook_events", "needs a webhook_url")
    if fields.webhook_url is not None:
        if offered is None or not offered.config.webhook_secrets:
            _refuse(
                "webhook_url", "is not possible here: the server has no `callbacks: webhook_secrets`", "webhooks_off"
            )
        _check_url(offered.rules, fields.webhook_url, "webhook_url")
    asks_for_uploads = fields.upload_url is not None or fields.upload_urls is not None
    if fields.upload_headers is not None and not asks_for_uploads:
        _refuse("upload_headers", "needs an upload_url or upload_urls")
    if asks_for_uploads:
        place = "upload_urls" if fields.upload_url is None else "upload_url"
        if offered is None or not offered.config.uploads:
            _refuse(place, "is not possible here: the server has no `callbacks: uploads: true`", "uploads_off")
        _check_uploads(fields, offered.rules, images, entries)
    own_url = None if offered is None else offered.config.public_url
    return CallbackRequest(
        base_url=(own_url or base_url).rstrip("/"),
        webhook_url=fields.webhook_url,
        webhook_events=tuple(dict.fromkeys(fields.webhook_events or JOB_EVENTS)),
        upload_url=fields.upload_url,
        upload_urls=None
        if fields.upload_urls is None
        else tuple(None if each is None else tuple(each) for each in fields.upload_urls),
        upload_headers={name.lower(): value for name, value in (fields.upload_headers or {}).items()},
    )


def _check_uploads(fields: CallbackFields, rules: AddressRules, images: Mapping[int, int], entries: int) -> None:
    if fields.upload_url is not None and fields.upload_urls is not None:
        _refuse("upload_urls", "cannot stand beside upload_url")
    _check_headers(fields.upload_headers or {})
    if fields.upload_url is not None:
        for place, many in (("{entry}", entries), ("{image}", max(images.values(), default=1))):
            if many > 1 and place not in fields.upload_url:
                _refuse("upload_url", f"must contain {place}, or images would overwrite one another")
        _check_url(rules, fill_in(fields.upload_url, "0" * 32, 0, 0, "webp"), "upload_url")
    if fields.upload_urls is None:
        return
    if len(fields.upload_urls) != entries:
        _refuse("upload_urls", f"must have {entries} entries, one for each of the batch")
    seen = set()
    for place, url in _given(fields.upload_urls, images):
        _check_url(rules, url, place)
        if url in seen:
            _refuse(place, "is there twice: images would overwrite one another")
        seen.add(url)


def _given(urls: list[list[str] | None], images: Mapping[int, int]) -> Iterator[tuple[str, str]]:
    """Yields the place and the URL of each image. Raises Problem where an entry has more or fewer than its images."""
    for entry, each in enumerate(urls):
        if each is None:
            continue
        if entry in images and len(each) != images[entry]:
            _refuse(f"upload_urls/{entry}", f"must have {images[entry]} entries, one for each image")
        yield from ((f"upload_urls/{entry}/{image}", url) for image, url in enumerate(each))


def _check_headers(headers: Mapping[str, str]) -> None:
    if len(headers) > MAX_HEADERS:
        _refuse("upload_headers", f"must have at most {MAX_HEADERS} entries")
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name.lower()):
            _refuse(
                "upload_headers", "may only have cache-control, content-disposition, and x-amz-, x-goog-, x-ms- ones"
            )
        if len(value) > MAX_HEADER_VALUE or not _HEADER_VALUE.fullmatch(value):
            _refuse("upload_headers", f"must have values of at most {MAX_HEADER_VALUE} printable ASCII characters")


def _check_url(rules: AddressRules, url: str, place: str) -> None:
    try:
        rules.check_url(url)
    except AddressRefused as error:
        _refuse(place, str(error), "address_not_allowed")


def _refuse(place: str, message: str, code: str = "invalid_value") -> NoReturn:
    fault = Fault(pointer_to(place), code, message)
    raise Problem(422, code, f"{place} {message}", param=place, faults=(fault,))


def callback_schema() -> dict[str, Any]:
    """The OpenAPI properties of these fields."""
    url = {"type": ["string", "null"]}
    return {
        "webhook_url": url | {"description": "Is sent a signed message when the job ends; the batch becomes a job."},
        "webhook_events": {
            "type": ["array", "null"],
            "minItems": 1,
            "items": {"enum": list(JOB_EVENTS)},
            "description": "What `webhook_url` hears of; all if left out.",
        },
        "upload_url": url
        | {
            "description": "Where each image is put (HTTP PUT), with `{job}`, `{entry}`, `{image}` and `{format}` "
            "filled in; the batch becomes a job."
        },
        "upload_urls": {
            "type": ["array", "null"],
            "items": {"type": ["array", "null"], "items": {"type": "string"}},
            "description": "The same as presigned URLs: for each entry a list with one for each image, or null.",
        },
        "upload_headers": {
            "type": ["object", "null"],
            "additionalProperties": {"type": "string"},
            "description": "Sent with each image: what its store asks for, such as `x-ms-blob-type`.",
        },
    }
