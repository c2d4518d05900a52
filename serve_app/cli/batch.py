"""`darkroom batch`: makes the pictures of a file of requests, one a line as JSON, as a job, and saves them."""

import json
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.engine.protocol.errors import InvalidParameter
from serve_app.cli.exits import EXIT_NO_IMAGE, exit_on_errors, exit_with
from serve_app.cli.options import ApiKey, AsJson, Priority, Url
from serve_app.cli.progress import check_url
from serve_app.cli.results import SavedJob, save_all, say, summary_of
from serve_app.client import DarkroomClient, DarkroomError
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
            output.mkdir(parents=True, exist_ok=True)
            callbacks = callback_options(webhook_url, webhook_events, upload_url)
            saved = SavedJob(output, as_json, list(requests).__getitem__, "line")
            job = save_all(client, _submit(client, list(requests.values()), priority, callbacks), saved)
        if as_json:
            say("", summary_of(job))
    if errors := saved.errors + len(requests) - len(saved.seen):
        raise exit_with(f"{errors} of {len(requests)} requests could not be made as asked", EXIT_NO_IMAGE)


def _submit(
    client: DarkroomClient, requests: list[dict[str, Any]], priority: str | None, callbacks: CallbackOptions
) -> str:
    """Submits the job. Ctrl-C meanwhile finds out its id, to cancel it: it may have begun."""
    key = uuid.uuid4().hex
    try:
        return client.submit(requests, priority=priority, idempotency_key=key, **callbacks)
    except KeyboardInterrupt:
        with suppress(DarkroomError):
            client.cancel_job(client.submit(requests, priority=priority, idempotency_key=key, **callbacks))
        raise


def read_requests(file: Path) -> dict[int, dict[str, Any]]:
    """Reads the requests by their line, from 1. The server validates each. Raises InvalidParameter."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InvalidParameter("file", f"{str(file)!r} cannot be read as text") from None
    found = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found[number] = json.loads(line)
        except ValueError:
            raise InvalidParameter("file", f"line {number} is not JSON") from None
        if not isinstance(found[number], dict):
            raise InvalidParameter("file", f"line {number} is not a JSON object")
    if not found:
        raise InvalidParameter("file", "there is no request in it")
    return found


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
