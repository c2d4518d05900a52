"""What clients of a Darkroom server send, and the errors that they raise for what comes back."""

import json
import os
import ssl
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, Literal, TypedDict
from urllib.parse import quote, urlsplit

import httpx

from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import GenerationParams
from serve_app.client.answers import DarkroomError, ServerAnswer, timed_out

LOOPBACK: Final = frozenset(("127.0.0.1", "::1", "localhost"))
API_KEY_VARIABLE: Final = "DARKROOM_API_KEY"
DEFAULT_URL: Final = "http://127.0.0.1:8000"

BASE: Final = "/ads/v2/diffusion"
HEALTH: Final = f"{BASE}/health"
BATCH: Final = f"{BASE}/batch-generate"
JOBS: Final = f"{BASE}/jobs"
STYLE_TRANSFERS: Final = f"{BASE}/style-transfers"
UPSCALE: Final = f"{BASE}/upscale"

# In a stream the server sends something every 15 seconds; a JSON answer comes once all its images are made.
CONNECT_SECONDS: Final = 10.0
STREAM_SECONDS: Final = 60.0
ANSWER_SECONDS: Final = 600.0
POLL_SECONDS: Final = 0.5
LONGEST_POLL_SECONDS: Final = 5.0

CANCEL_SECONDS: Final = 5.0
"""Whoever has stopped waiting for a job waits so long for its cancellation."""

UNFINISHED: Final = ("queued", "running")

Entry = GenerationParams | dict[str, Any]

Listed = Literal["models", "samplers", "styles", "templates", "ad-formats", "loras", "upscalers"]
"""What a server lists by name."""


class CallbackOptions(TypedDict, total=False):
    """What a job's caller wants to be called back about (docs/callbacks.md)."""

    webhook_url: str
    webhook_events: Sequence[str]
    upload_url: str
    upload_urls: Sequence[Sequence[str] | None]
    upload_headers: Mapping[str, str]


def http_options(base_url: str, api_key: str | None) -> dict[str, Any]:
    """Returns httpx's arguments for a client of the server there; without a key it is the environment's, if any."""
    key = os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key
    with translate_errors():
        url = httpx.URL(base_url)
    if not is_address(base_url):
        raise _invalid_url()
    # A company's proxy cannot reach this machine's loopback, but httpx would use it all the same.
    return {"base_url": url, "auth": _auth_of(key, url), "trust_env": url.host not in LOOPBACK}


def is_address(url: str) -> bool:
    """Whether `url` could be a server's."""
    try:
        parts = urlsplit(url)
        # Names have rules of their own: no empty label, none of more than 63 characters.
        (parts.hostname or "").encode("idna")
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _invalid_url() -> DarkroomError:
    return DarkroomError(0, "invalid_url", "the server's address must be like http://127.0.0.1:8000")


def _auth_of(api_key: str, server: httpx.URL) -> "_KeyForOneServer | None":
    key = api_key.strip()
    if not (key.isascii() and key.isprintable()):
        raise DarkroomError(0, "invalid_api_key", "the API key has characters that no key has")
    return _KeyForOneServer(key, server) if key else None


class _KeyForOneServer(httpx.Auth):
    """Gives the key to its server only: an answer may send clients to fetch images elsewhere."""

    def __init__(self, key: str, server: httpx.URL) -> None:
        self._key, self._origin = key, _origin_of(server)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Adds the header."""
        if _origin_of(request.url) == self._origin:
            request.headers["Authorization"] = f"Bearer {self._key}"
        yield request


def _origin_of(url: httpx.URL) -> tuple[str, str, int | None]:
    # httpx leaves out the port where it is the scheme's own.
    return url.scheme, url.host, url.port


def encode_request(
    body: dict[str, Any], uploads: Uploads | None, references: Sequence[bytes] = ()
) -> tuple[str, dict[str, Any]]:
    """Returns the endpoint's path and httpx's arguments: JSON for text, a form with uploads. `references` are reference
    images besides those of `uploads`.

    Raises ValueError for uploads without a file.
    """
    if references:
        uploads = replace(uploads or Uploads(), references=(*(uploads.references if uploads else ()), *references))
    if uploads is None:
        return f"{BASE}/text-to-image", {"json": body}
    starts = (uploads.image, uploads.mask, *uploads.hints)
    if not any(starts) and not uploads.references:
        raise ValueError("the uploads hold no file: give them an image or hints, or leave them out")
    path = "controlnet" if uploads.hints else uploads.task
    image_name = "image" if path == "inpaint" else "init_image"
    named = [
        (image_name, uploads.image),
        ("mask", uploads.mask),
        *(("control_image", hint) for hint in uploads.hints),
        *(("reference_images", reference) for reference in uploads.references),
    ]
    fields = {
        "mask_type": uploads.mask_type,
        "mask_alpha": uploads.mask_alpha,
        "preprocess": uploads.preprocess or None,
        # Reference images alone are not fitted to anything.
        "fit": uploads.fit if any(starts) else None,
    }
    data = {"params": json.dumps(body | {name: value for name, value in fields.items() if value is not None})}
    files = [(name, (name, content)) for name, content in named if content is not None]
    return f"{BASE}/{path}", {"data": data, "files": files}


def restyle_form(
    images: Sequence[bytes], reference_images: Sequence[bytes], fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns httpx's arguments for a set of pictures to be restyled."""
    named = [*(("images", file) for file in images), *(("reference_images", file) for file in reference_images)]
    return {"data": {"params": json.dumps(fields)}, "files": [(name, (name, file)) for name, file in named]}


def upscale_form(image: bytes, scale: float, upscaler: str | None, output_format: str) -> dict[str, Any]:
    """Returns httpx's arguments for a picture to be enlarged."""
    fields = {"scale": repr(float(scale)), "upscaler": upscaler or "", "output_format": output_format}
    return {"data": fields, "files": {"image": ("image", image)}}


def params_body(params: GenerationParams | None, fields: dict[str, Any]) -> dict[str, Any]:
    if params is not None and fields:
        raise TypeError("give params or their fields, not both")
    # Leaves unset fields to the server, whose defaults depend on its models.
    return fields if params is None else params.model_dump(mode="json", exclude_unset=True)


def batch_body(
    requests: Sequence[Entry],
    priority: str | None,
    deadline_ms: int | None,
    callbacks: CallbackOptions | None = None,
) -> dict[str, Any]:
    bodies = [each if isinstance(each, dict) else params_body(each, {}) for each in requests]
    fields = {"priority": priority, "deadline_ms": deadline_ms, **(callbacks or {})}
    return {"requests": bodies} | {name: value for name, value in fields.items() if value is not None}


def headers_of(request_id: str | None = None, *, once: bool = False) -> dict[str, str]:
    """Returns the headers of a request: its name, and with `once` a key under which it runs only once.

    Raises DarkroomError for a name that no header can have.
    """
    if request_id is not None and not (request_id.isascii() and request_id.isprintable()):
        rule = "request_id must be printable ASCII; servers take letters, digits and ._-"
        raise DarkroomError(0, "invalid_request_id", rule, "request_id")
    headers = {} if request_id is None else {"X-Request-Id": request_id}
    return headers | ({"Idempotency-Key": uuid.uuid4().hex} if once else {})


def list_path(what: Listed) -> tuple[str, str]:
    """Returns the path of a list, and the field of its answer that has it."""
    return f"{BASE}/{what}", what.replace("-", "_")


def job_path(job_id: str) -> str:
    """Returns the path of a job."""
    return f"{JOBS}/{quote(job_id, safe='')}"


def request_path(request_id: str) -> str:
    """Returns the path of a running request."""
    return f"{BASE}/requests/{quote(request_id, safe='')}"


def poll_seconds(waited_s: float) -> float:
    """Returns the seconds until a job is asked for again, after `waited_s`: an answer has all its results so far."""
    return min(LONGEST_POLL_SECONDS, max(POLL_SECONDS, waited_s / 10))


def answer_timeout(seconds: float) -> httpx.Timeout:
    """Returns httpx's time-outs for an answer that may take `seconds` seconds; connecting takes less, or fails."""
    return httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))


def read_health(answer: ServerAnswer) -> dict[str, Any]:
    """Returns the health object, which an unhealthy server sends with an error's status. Raises DarkroomError."""
    health = answer.body
    # Of a problem, `status` is a number.
    if isinstance(health.get("status"), str):
        return health
    answer.raise_for_status()
    return answer.json("status")


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raises DarkroomError for what httpx raises, and for a time limit of asyncio's."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        if (failure := _tls_failure_of(error)) is not None:
            raise failure from None
        message = "no server answers at this address; `make serve` starts one"
        raise DarkroomError(0, "unreachable", message, retryable=True) from None
    except (httpx.TimeoutException, TimeoutError):
        raise timed_out() from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise _invalid_url() from None
    except UnicodeError:
        raise DarkroomError(0, "invalid_parameter", "a text has half of a surrogate pair, which is no text") from None
    except httpx.DecodingError:
        raise DarkroomError(0, "invalid_answer", "what was answered cannot be decompressed") from None
    except httpx.TransportError:
        raise DarkroomError(0, "connection_lost", "the connection was lost", retryable=True) from None


@contextmanager
def translate_setup_errors() -> Iterator[None]:
    """Raises DarkroomError for what httpx finds in the environment and cannot use: proxies, certificates' files."""
    try:
        yield
    except ImportError:
        message = "the environment names a SOCKS proxy, for which this needs more: pip install 'httpx[socks]'"
        raise DarkroomError(0, "invalid_environment", message) from None
    except (ValueError, OSError, httpx.InvalidURL):
        message = "the environment's proxy (ALL_PROXY, ...) or certificates (SSL_CERT_FILE, ...) cannot be used"
        raise DarkroomError(0, "invalid_environment", message) from None


def _tls_failure_of(error: BaseException) -> DarkroomError | None:
    """Returns what to say of a server that answers, but not in a way that can be trusted."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        message = f"the server's certificate is not trusted here: {cause.verify_message}"
        return DarkroomError(0, "untrusted_certificate", message)
    # A server that is just ending closes connections that begin.
    if cause is not None and not isinstance(cause, ssl.SSLEOFError):
        return DarkroomError(0, "tls_failed", "the server does not speak TLS as https:// addresses need it")
    return None
