"""`darkroom batch`: makes the pictures of a file of requests, one a line as JSON, as a job, and saves them."""

import json
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.engine.protocol.errors import InvalidParameter
from serve_app.cli.exits import EXIT_NO_IMAGE, exit_on_errors, exit_with
from serve_app.cli.options import ApiKey, AsJson, Priority, Url
from serve_app.cli.progress import check_url
from serve_app.cli.results import SavedJob, make_folder, save_all, say, summary_of
from serve_app.cli.waiting import submit
from serve_app.client import DarkroomClient
from serve_app.client.messages import DEFAULT_URL, CallbackOptions

RequestsFile = Annotated[Path, typer.Argument(help="One request a line, as JSON: what text-to-image takes.")]
WebhookUrl = Annotated[str | None, typer.Option(help="Is told when the job is over: docs/callbacks.md.")]
WebhookEvents = Annotated[
    list[str] | None,
    typer.Option(
        "--webhook-event",
        help="What it is told of; may be repeated. All if not given.",
        autocompletion=lambda: ["job.succeeded", "job.failed", "job.cancelled", "job.uploaded"],
    ),
]
UploadUrl = Annotated[
    str | None,
    typer.Option(help="Where the server puts each picture; {job}, {entry}, {image}, {format} are filled in."),
]


def batch(
    file: RequestsFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder; pictures are named LINE-IMAGE.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    priority: Priority = None,
    webhook_url: WebhookUrl = None,
    webhook_events: WebhookEvents = None,
    upload_url: UploadUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make the pictures of many requests, and save each as soon as it is there. Ctrl-C cancels the job."""
    with exit_on_errors(as_json=as_json, url=url):
        requests = read_requests(file)
        check_url(url)
        with DarkroomClient(url, api_key=api_key) as client:
            make_folder(output)
            callbacks = callback_options(webhook_url, webhook_events, upload_url)
            saved = SavedJob(output, as_json, list(requests).__getitem__, "line")
            job_id = submit_requests(client, list(requests.values()), priority, callbacks)
            job = save_all(client, job_id, saved)
        if as_json:
            say("", summary_of(job))
    if errors := saved.errors + len(requests) - len(saved.seen):
        raise exit_with(f"{errors} of {len(requests)} requests could not be made as asked", EXIT_NO_IMAGE)


def submit_requests(
    client: DarkroomClient, requests: list[dict[str, Any]], priority: str | None, callbacks: CallbackOptions
) -> str:
    """Submits the requests as a job and returns its id. Ctrl-C meanwhile cancels it."""
    key = uuid.uuid4().hex
    return submit(client, lambda client: client.submit(requests, priority=priority, idempotency_key=key, **callbacks))


def read_requests(file: Path) -> dict[int, dict[str, Any]]:
    """Reads the requests by their line, from 1. The server validates each. Raises InvalidParameter."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise InvalidParameter("file", f"{str(file)!r} cannot be read as text") from None
    # Not `splitlines`: JSON's texts may hold what it takes for ends of lines, U+2028 for example.
    lines = enumerate(text.split("\n"), start=1)
    found = {number: _read_request(line, number) for number, line in lines if line.strip()}
    if not found:
        raise InvalidParameter("file", "there is no request in it")
    return found


def _read_request(line: str, number: int) -> dict[str, Any]:
    try:
        request = json.loads(line, parse_constant=_refuse_constant)
        json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidParameter("file", f"line {number} has half of a surrogate pair, which is no text") from None
    except (ValueError, RecursionError):
        raise InvalidParameter("file", f"line {number} is not JSON") from None
    if not isinstance(request, dict):
        raise InvalidParameter("file", f"line {number} is not a JSON object")
    return request


def _refuse_constant(name: str) -> None:
    """Refuses NaN and infinities, which Python reads and JSON does not have."""
    raise ValueError(name)


def callback_options(webhook_url: str | None, events: list[str] | None, upload_url: str | None) -> CallbackOptions:
    """Returns what of these was given."""
    options: CallbackOptions = {}
    if webhook_url is not None:
        options["webhook_url"] = webhook_url
    if events:
        options["webhook_events"] = events
    if upload_url is not None:
        options["upload_url"] = upload_url
    return options
