"""Begins jobs, waits for them, also while their server restarts, and cancels those that nobody waits for any more."""

import math
import time
from collections.abc import Callable
from typing import Any, Final

import typer

from serve_app.client import DarkroomClient, DarkroomError
from serve_app.client.messages import ANSWER_SECONDS, CANCEL_SECONDS, UNFINISHED, poll_seconds

AWAY_S: Final = 300.0
"""A server that has answered before may be away for so long: it may be restarting."""

LEAST_S: Final = 0.5
"""An answer has this time, however little is left."""


def is_over(job: dict[str, Any], *, uploads: bool = False) -> bool:
    """Whether the job has ended; with `uploads` also whether none of those is pending."""
    pending = uploads and job.get("uploads", {}).get("pending", 0)
    return job["state"] not in UNFINISHED and not pending


def follow(
    client: DarkroomClient,
    job_id: str,
    *,
    take: Callable[[dict[str, Any]], object] = lambda _: None,
    uploads: bool = False,
    timeout_s: float = math.inf,
) -> tuple[dict[str, Any], bool]:
    """Returns the job once it is over, and whether it is: after `timeout_s` seconds it is returned as it is.

    `take` gets the job whenever it is asked for. Raises DarkroomError, but for a server that has answered before only
    once it has been away for `AWAY_S`.
    """
    began = time.monotonic()
    heard: float | None = None
    job: dict[str, Any] | None = None
    while True:
        left = began + timeout_s - time.monotonic()
        try:
            job = client.with_timeout(min(ANSWER_SECONDS, max(LEAST_S, left))).job(job_id)
            heard = time.monotonic()
            take(job)
            if is_over(job, uploads=uploads):
                return job, True
        except DarkroomError as error:
            timed_out = job is not None and time.monotonic() >= began + timeout_s
            if not timed_out and (heard is None or not error.retryable or time.monotonic() - heard > AWAY_S):
                raise
        now = time.monotonic()
        if job is not None and now >= began + timeout_s:
            return job, False
        time.sleep(max(0.0, min(poll_seconds(now - began), began + timeout_s - now)))


def submit(client: DarkroomClient, send: Callable[[DarkroomClient], str]) -> str:
    """Submits a job by `send`, and returns its id. Ctrl-C meanwhile cancels it: it may have begun.

    Its id is then that of the same call, made again: `send` has an idempotency key.
    """
    try:
        return send(client)
    except KeyboardInterrupt:
        try:
            job_id = send(client.with_timeout(CANCEL_SECONDS))
        except (DarkroomError, KeyboardInterrupt) as error:
            typer.echo(f"darkroom: a job may have begun, and was not cancelled{_why(error)}", err=True)
        else:
            cancel_job(client, job_id)
        raise


def cancel_job(client: DarkroomClient, job_id: str) -> None:
    """Cancels a job that nobody waits for any more, or says that it goes on."""
    try:
        client.with_timeout(CANCEL_SECONDS).cancel_job(job_id)
    except (DarkroomError, KeyboardInterrupt) as error:
        typer.echo(
            f"darkroom: job {job_id} may go on, since it was not cancelled{_why(error)}; "
            f"`darkroom jobs cancel {job_id}` does it",
            err=True,
        )


def _why(error: BaseException) -> str:
    return f": {error.message}" if isinstance(error, DarkroomError) else ""
