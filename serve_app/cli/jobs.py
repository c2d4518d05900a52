"""`darkroom jobs`: the commands for jobs that the server works on by itself."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.engine.protocol.errors import InvalidParameter
from serve_app.cli.batch import (
    RequestsFile,
    UploadUrl,
    WebhookEvents,
    WebhookUrl,
    callback_options,
    read_requests,
    submit_requests,
)
from serve_app.cli.completion import complete_job
from serve_app.cli.exits import EXIT_BUSY, EXIT_NO_IMAGE, exit_on_errors, exit_with
from serve_app.cli.options import ApiKey, AsJson, Priority, Url
from serve_app.cli.progress import check_url
from serve_app.cli.results import SavedJob, make_folder, say, summary_of
from serve_app.cli.waiting import follow
from serve_app.client import DarkroomClient
from serve_app.client.answers import reading_answer
from serve_app.client.messages import DEFAULT_URL

app = typer.Typer(help="Jobs: batches that go on without you.", no_args_is_help=True)

JobId = Annotated[
    str, typer.Argument(help="What `darkroom batch` or the server called it.", autocompletion=complete_job)
]


@app.command("list")
def list_jobs(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Your newest jobs, at most a hundred, the newest first."""
    with _connect(url, api_key, as_json) as client:
        found = client.jobs()
        if as_json:
            say("", {"jobs": found})
            return
        for job in found:
            with reading_answer():
                counts = f"{job['succeeded']} of {job['entries']} made, {job['failed']} failed"
                line = f"{job['id']}  {job['state']:<9}  {job['progress']:4.0%}  {counts}  {job['created_at']}"
            print(line)


@app.command()
def show(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """How a job is, as JSON."""
    with _connect(url, api_key) as client:
        print(json.dumps(client.job(job_id), indent=2))


@app.command()
def submit(
    file: RequestsFile,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    priority: Priority = None,
    webhook_url: WebhookUrl = None,
    webhook_events: WebhookEvents = None,
    upload_url: UploadUrl = None,
    as_json: AsJson = False,
) -> None:
    """Begin a job, print its id, and leave it to the server. Ctrl-C before its id is there cancels it."""
    with _connect(url, api_key, as_json) as client:
        requests = read_requests(file)
        callbacks = callback_options(webhook_url, webhook_events, upload_url)
        job_id = submit_requests(client, list(requests.values()), priority, callbacks)
        say(job_id, {"job": job_id} if as_json else None)


@app.command()
def wait(
    job_id: JobId,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds after which it ends with exit code 4.")] = None,
    uploads: Annotated[bool, typer.Option("--uploads", help="Wait for its uploads as well.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Wait until a job is over. Ctrl-C ends the waiting, not the job."""
    timeout_s = math.inf if timeout is None else timeout
    with _connect(url, api_key, as_json) as client:
        if math.isnan(timeout_s):
            raise InvalidParameter("timeout", "must be a number of seconds")
        job, over = follow(client, job_id, uploads=uploads, timeout_s=timeout_s)
    say(job["state"], summary_of(job) if as_json else None)
    if not over:
        raise exit_with(f"it is still {job['state']} after {timeout_s:g} s", EXIT_BUSY)
    _exit_unless_complete(job, uploads=uploads)


@app.command()
def cancel(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """End a job; what was done is kept."""
    with _connect(url, api_key, as_json) as client:
        job = client.cancel_job(job_id)
        say(job["state"], summary_of(job) if as_json else None)


@app.command()
def download(
    job_id: JobId,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder; pictures are named ENTRY-IMAGE.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Save the pictures that a job has made so far."""
    with _connect(url, api_key, as_json) as client:
        job = client.job(job_id)
        make_folder(output)
        saved = SavedJob(output, as_json, lambda index: index, "entry")
        saved.add(client, job)
    if saved.errors:
        raise exit_with(f"{saved.errors} of {job['entries']} entries could not be made as asked", EXIT_NO_IMAGE)


def _exit_unless_complete(job: dict[str, Any], *, uploads: bool) -> None:
    if job["state"] != "succeeded" or job["failed"]:
        raise exit_with(f"{job['state']}: {job['succeeded']} of {job['entries']} entries were made", EXIT_NO_IMAGE)
    lost = job.get("uploads", {}).get("upload_failed", 0)
    if uploads and lost:
        raise exit_with(f"{lost} pictures could not be put where they belong", EXIT_NO_IMAGE)


@contextmanager
def _connect(url: str, api_key: str | None, as_json: bool = False) -> Iterator[DarkroomClient]:
    """A client whose errors end the command in one line."""
    with exit_on_errors(as_json=as_json, url=url):
        check_url(url)
        with DarkroomClient(url, api_key=api_key) as client:
            yield client
