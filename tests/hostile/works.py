"""Rows about batches, jobs, the ending of requests, and the cache."""

import json
from typing import Any, Final

from tests.hostile.rows import DIFFUSION, JSON, Row, said
from tests.hostile.wire import request

BATCH: Final = f"{DIFFUSION}/batch-generate"
JOBS: Final = f"{DIFFUSION}/jobs"
ONE: Final = {"prompt": "SECRET cup", "width": 64, "height": 64}


def batch(name: str, body: Any, status: int, code: str | None = None, param: str | None = None) -> Row:
    return said(name, json.dumps(body).encode(), status, code, param, door=BATCH)


def upload(name: str, url: str, code: str = "address_not_allowed") -> Row:
    """A server that does put images elsewhere, and is told to put them there."""
    return batch(f"an upload to {name}", {"requests": [ONE], "upload_url": url}, 422, code, "upload_url")


def upload_header(name: str, **headers: str) -> Row:
    fields = {"upload_url": "https://SECRET.example/", "upload_headers": headers}
    return batch(f"an upload with {name}", {"requests": [ONE], **fields}, 422, "invalid_value", "upload_headers")


def plain(name: str, method: str, path: str, status: int, code: str | None = None) -> Row:
    return Row(name, request(method, DIFFUSION + path), status, code)


ROWS: Final = (
    batch("a batch of nothing", {"requests": []}, 422, "too_short", "requests"),
    batch("a batch without requests", {}, 422, "required", "requests"),
    batch("a batch that is an object", {"requests": ONE}, 422, "wrong_type", "requests"),
    batch("a batch in a batch", {"requests": [{"requests": [ONE]}]}, 200),
    batch("entries that are none", {"requests": [None, 1, "SECRET", [], [[ONE]], True]}, 200),
    batch("one entry too many", {"requests": [{}] * 1001}, 422, "batch_too_large", "requests"),
    batch("300,000 entries", {"requests": [0] * 300_000}, 422, "batch_too_large", "requests"),
    batch("2,001 pictures", {"requests": [ONE | {"num_images": 16}] * 126}, 422, "batch_too_large", "requests"),
    batch("an entry with a path for a model", {"requests": [ONE | {"model_name": "../../SECRET"}]}, 200),
    batch("an entry that asks for everything", {"requests": [ONE | {"width": 2048, "height": 2048}]}, 200),
    batch(
        "a batch of the highest priority", {"requests": [ONE], "priority": "highest"}, 422, "not_allowed", "priority"
    ),
    batch("a batch that names a callback", {"requests": [ONE], "callback": "http://SECRET"}, 422, "unknown_field"),
    batch("a webhook where there are none", {"requests": [ONE], "webhook_url": "https://SECRET/"}, 422, "webhooks_off"),
    upload("a file", "file:///etc/passwd?SECRET"),
    upload("nowhere", "SECRET"),
    upload("this machine", "https://127.0.0.1/SECRET"),
    upload("this machine in IPv6", "https://[::ffff:127.0.0.1]/SECRET"),
    upload("a cloud's metadata", "https://169.254.169.254/latest/SECRET"),
    upload("Redis", "https://10.0.0.1:6379/SECRET"),
    upload("plain HTTP", "http://SECRET.example/"),
    upload("two hosts", "https://SECRET.example\\@127.0.0.1/"),
    upload("somebody's account", "https://user:SECRET@example.com/"),
    upload("two lines", "https://example.com/\r\nX-SECRET: 1"),
    upload("a very long address", "https://example.com/SECRET" + "a" * 100_000),
    upload_header("a line of its own", **{"x-amz-acl": "private\r\nX-SECRET: 1"}),
    upload_header("a host of its own", Host="SECRET"),
    upload_header("a length of its own", **{"Content-Length": "1"}),
    upload_header("a key to metadata", **{"Metadata-Flavor": "SECRET"}),
    said("a batch twice", b'{"requests": [], "requests": []}', 422, "duplicate_key", door=BATCH),
    said("a batch as a form", b"requests=SECRET", 415, door=BATCH, headers=(("Content-Type", "text/plain"),)),
    said(
        "Prefer: a megabyte", b'{"requests": []}', 422, "too_short", door=BATCH, headers=(*JSON, ("Prefer", "x" * 9999))
    ),
    plain("a job of that name", "GET", "/jobs/SECRET", 404, "job_not_found"),
    plain("a job that is a path", "GET", "/jobs/..%2f..%2fetc%2fpasswd", 404),
    plain("a job with a null", "GET", "/jobs/%00SECRET", 404, "job_not_found"),
    plain("a job that is a pattern", "DELETE", "/jobs/*", 404, "job_not_found"),
    plain("a picture before the first", "GET", "/jobs/SECRET/images/-1/0", 404, "job_not_found"),
    plain("a picture far away", "GET", f"/jobs/SECRET/images/{'9' * 99}/0", 404, "job_not_found"),
    plain("a picture of half an entry", "GET", "/jobs/SECRET/images/0.5/0", 422, "wrong_type"),
    plain("the events of no job", "GET", "/jobs/SECRET/events", 404, "job_not_found"),
    plain("ending nothing", "DELETE", "/requests/SECRET*", 422, "malformed"),
    plain("ending with a null", "DELETE", "/requests/%00", 422, "malformed"),
    plain("ending what has a megabyte for a name", "DELETE", f"/requests/{'x' * 9999}", 422, "too_long"),
    plain("asking for the cache", "GET", "/cache", 405),
)
