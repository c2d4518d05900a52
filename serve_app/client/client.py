"""The client of a Darkroom server, for Python programs and the command line. Imports no torch and no Ray."""

import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from serve_app.client.answers import DarkroomError, ServedEntry, ServedImage, error_of, failure_of

__all__ = ["BASE", "DarkroomClient", "DarkroomError", "ServedEntry", "ServedImage", "ServerEvent", "parse_events"]

LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))

API_KEY_VARIABLE = "DARKROOM_API_KEY"

BASE = "/ads/v2/diffusion"
HEALTH = f"{BASE}/health"
BATCH = f"{BASE}/batch-generate"

# In a stream the server sends something every 15 seconds; a JSON answer comes once all its images are made.
CONNECT_SECONDS = 10.0
STREAM_SECONDS = 60.0
ANSWER_SECONDS = 600.0
POLL_SECONDS = 0.5

Entry = GenerationParams | dict[str, Any]


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream: `name` is progress, preview, image, failed or done."""

    name: str
    data: dict[str, Any] = field(repr=False)


class DarkroomClient:
    """Asks a server for images. Use it as a context manager, or close it. Threads may share it.

    `timeout` is how many seconds a whole JSON answer may take; a stream only has to send something now and then.
    `api_key` is for servers that require one; it defaults to the environment's DARKROOM_API_KEY.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        timeout: float = ANSWER_SECONDS,
        *,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = _authorization(os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key)
        with _translate_errors():
            # A company's proxy cannot reach this machine's loopback, but httpx would use it all the same.
            local = httpx.URL(base_url).host in LOOPBACK
            self._http = httpx.Client(base_url=base_url, headers=headers, transport=transport, trust_env=not local)
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
        self,
        params: GenerationParams | None = None,
        *,
        uploads: Uploads | None = None,
        request_id: str | None = None,
        **fields: Any,
    ) -> list[ServedImage]:
        """Returns the images, in order. Give `params`, or their fields as keywords; `request_id` is for `cancel`.

        With `uploads` it is image-to-image, inpainting or ControlNet. Raises DarkroomError, even if only some of the
        images failed.
        """
        path, options = encode_request(_params_body(params, fields), uploads)
        with _translate_errors():
            response = self._http.post(
                path, timeout=self._answer_timeout, headers=_request_id_header(request_id), **options
            )
        _raise_for_status(response)
        answer = response.json()
        if failure := failure_of(answer):
            raise failure
        return [ServedImage.from_json(image) for image in answer["images"]]

    def stream(
        self,
        params: GenerationParams | None = None,
        *,
        uploads: Uploads | None = None,
        previews: int = 0,
        request_id: str | None = None,
        **fields: Any,
    ) -> Iterator[ServerEvent]:
        """Yields the request's events as they come; closing the iterator cancels the request. Raises DarkroomError.

        The first event has its `id`.
        """
        path, options = encode_request(_params_body(params, fields), uploads)
        options |= {
            "params": {"previews": previews},
            "headers": {"Accept": "text/event-stream", **_request_id_header(request_id)},
            "timeout": self._stream_timeout,
        }
        with _translate_errors(), self._http.stream("POST", path, **options) as response:
            if response.is_error:
                response.read()
            _raise_for_status(response)
            yield from _read_until_done(parse_events(response.iter_lines()))

    def cancel(self, request_id: str) -> bool:
        """Cancels one's own request or batch with that id; False if there is none. Its waiting caller gets an error."""
        cancelled: bool = self._request("DELETE", f"{BASE}/requests/{quote(request_id, safe='')}")["cancelled"]
        return cancelled

    def batch(
        self, requests: Sequence[Entry], *, priority: str | None = None, deadline_ms: int | None = None
    ) -> list[ServedEntry]:
        """Returns the result of each of `requests`, in order. Waits, even if they are too many for one answer."""
        answer = self._request("POST", BATCH, json=_batch_body(requests, priority, deadline_ms))
        while answer.get("state") in ("queued", "running"):
            time.sleep(POLL_SECONDS)
            answer = self.job(answer["id"])
        return self.entries_of(answer)

    def submit(self, requests: Sequence[Entry], *, priority: str | None = None, deadline_ms: int | None = None) -> str:
        """Submits `requests` as a job and returns its id. The job goes on after this program has ended."""
        body, headers = _batch_body(requests, priority, deadline_ms), {"Prefer": "respond-async"}
        job_id: str = self._request("POST", BATCH, json=body, headers=headers)["id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        """Returns the job's state and its results so far."""
        return self._request("GET", f"{BASE}/jobs/{quote(job_id, safe='')}")

    def entries_of(self, job: dict[str, Any], but: Collection[int] = ()) -> list[ServedEntry]:
        """Returns the results in `job`, with their images fetched; `but` are indices to leave out."""
        return [self._read_entry(entry) for entry in job["results"] if entry["index"] not in but]

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        """Cancels the job, if it is unfinished, and returns its state. Its results so far are kept."""
        return self._request("DELETE", f"{BASE}/jobs/{quote(job_id, safe='')}")

    def health(self) -> dict[str, Any]:
        """Returns the server's health object, healthy or not."""
        with _translate_errors():
            health: dict[str, Any] = self._http.get(HEALTH, timeout=self._answer_timeout).json()
        return health

    def _request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        with _translate_errors():
            response = self._http.request(method, path, timeout=self._answer_timeout, **options)
        _raise_for_status(response)
        answer: dict[str, Any] = response.json()
        return answer

    def _read_entry(self, entry: dict[str, Any]) -> ServedEntry:
        if "images" not in entry:
            return ServedEntry(entry["index"], (), error_of(entry))
        images = tuple(self._read_image(image) for image in entry["images"])
        return ServedEntry(entry["index"], images, failure_of(entry))

    def _read_image(self, image: dict[str, Any]) -> ServedImage:
        if "url" not in image:
            return ServedImage.from_json(image)
        with _translate_errors():
            response = self._http.get(image["url"], timeout=self._answer_timeout)
        _raise_for_status(response)
        return ServedImage.from_json(image, response.content)


def _authorization(api_key: str) -> dict[str, str]:
    key = api_key.strip()
    if not (key.isascii() and key.isprintable()):
        raise DarkroomError(0, "invalid_api_key", "the API key has characters that no key has")
    return {"Authorization": f"Bearer {key}"} if key else {}


def encode_request(body: dict[str, Any], uploads: Uploads | None) -> tuple[str, dict[str, Any]]:
    """Returns the endpoint's path and httpx's arguments: JSON for text, a form with uploads.

    Raises ValueError for uploads without a file.
    """
    if uploads is None:
        return f"{BASE}/text-to-image", {"json": body}
    if uploads.image is None and uploads.mask is None and not uploads.hints:
        raise ValueError("the uploads hold no file: give them an image or hints, or leave them out")
    path = "controlnet" if uploads.hints else uploads.task
    image_name = "image" if path == "inpaint" else "init_image"
    named = [(image_name, uploads.image), ("mask", uploads.mask), *(("control_image", hint) for hint in uploads.hints)]
    fields = {
        "mask_type": uploads.mask_type,
        "mask_alpha": uploads.mask_alpha,
        "preprocess": uploads.preprocess or None,
        "fit": uploads.fit,
    }
    data = {"params": json.dumps(body | {name: value for name, value in fields.items() if value is not None})}
    files = [(name, (name, content)) for name, content in named if content is not None]
    return f"{BASE}/{path}", {"data": data, "files": files}


def parse_events(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """Parses server-sent events from a stream's lines. Skips comments."""
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


def _read_until_done(events: Iterator[ServerEvent]) -> Iterator[ServerEvent]:
    done = False
    # Read to the very end: the server takes a connection that is closed earlier for a disconnect.
    for event in events:
        if event.name == "error":
            raise error_of(event.data)
        done = event.name == "done"
        yield event
    if not done:
        message = "the server ended the stream before the request was done"
        raise DarkroomError(0, "connection_lost", message, retryable=True)


def _params_body(params: GenerationParams | None, fields: dict[str, Any]) -> dict[str, Any]:
    if params is not None and fields:
        raise TypeError("give params or their fields, not both")
    # Leaves unset fields to the server, whose defaults depend on its models.
    return fields if params is None else params.model_dump(mode="json", exclude_unset=True)


def _batch_body(requests: Sequence[Entry], priority: str | None, deadline_ms: int | None) -> dict[str, Any]:
    bodies = [each if isinstance(each, dict) else _params_body(each, {}) for each in requests]
    fields = {"priority": priority, "deadline_ms": deadline_ms}
    return {"requests": bodies} | {name: value for name, value in fields.items() if value is not None}


def _request_id_header(request_id: str | None) -> dict[str, str]:
    return {} if request_id is None else {"X-Request-Id": request_id}


@contextmanager
def _translate_errors() -> Iterator[None]:
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


def _raise_for_status(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        body = response.json()
    except ValueError:
        body = {}
    raise error_of(body if isinstance(body, dict) else {}, response.status_code)
