"""The commands for many images at once: a file of requests, and the jobs that they become on the server."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.engine.protocol.errors import InvalidParameter
from serve_app.cli.exits import EXIT_INTERRUPTED, EXIT_USAGE, exit_with
from serve_app.cli.options import DEFAULT_URL, Priority, Url
from serve_app.cli.progress import check_url
from serve_app.client import DarkroomClient, DarkroomError, ServedEntry
from serve_app.client.messages import POLL_SECONDS

jobs = typer.Typer(help="What became of batches.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="What `darkroom batch` or the server called it.")]


def batch(
    file: Annotated[Path, typer.Argument(help="One request a line, as JSON: what text-to-image takes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder; pictures are named LINE-IMAGE.")],
    url: Url = DEFAULT_URL,
    priority: Priority = None,
) -> None:
    """Make the pictures of many requests. Exit codes: 1 some could not be made, 2 a slip, 130 Ctrl-C, which cancels."""
    requests = _read_requests(file)
    with _connect(url) as client:
        output.mkdir(parents=True, exist_ok=True)
        job_id = client.submit(list(requests.values()), priority=priority)
        print(f"job {job_id}", flush=True)
        try:
            errors = _save_all(client, job_id, list(requests), output)
        except KeyboardInterrupt:
            client.cancel_job(job_id)
            raise
    if errors:
        raise exit_with(f"{errors} of {len(requests)} requests could not be made as asked")


@jobs.command()
def show(job_id: JobId, url: Url = DEFAULT_URL) -> None:
    """How a job is, as JSON."""
    with _connect(url) as client:
        print(json.dumps(client.job(job_id), indent=2))


@jobs.command()
def cancel(job_id: JobId, url: Url = DEFAULT_URL) -> None:
    """End a job; what was done is kept."""
    with _connect(url) as client:
        print(client.cancel_job(job_id)["state"])


def _save_all(client: DarkroomClient, job_id: str, lines: list[int], output: Path) -> int:
    """Saves images as they come. Prints which lines had errors, and returns how many."""
    seen: set[int] = set()
    errors = 0
    while True:
        job = client.job(job_id)
        for entry in client.entries_of(job, but=seen):
            seen.add(entry.index)
            line = lines[entry.index]
            _save(entry, line, output)
            if entry.error is not None:
                errors += 1
                typer.echo(f"line {line}: {entry.error.message}", err=True)
        if job["state"] not in ("queued", "running"):
            return errors + len(lines) - len(seen)
        time.sleep(POLL_SECONDS)


def _save(entry: ServedEntry, line: int, output: Path) -> None:
    for image in entry.images:
        path = output / f"{line:04d}-{image.index}.{image.format}"
        path.write_bytes(image.data)
        print(f"{path} (seed {image.seed})", flush=True)


def _read_requests(file: Path) -> dict[int, dict[str, Any]]:
    """Reads the requests by their line, from 1. The server validates each."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise exit_with(f"file: {str(file)!r} cannot be read as text", EXIT_USAGE) from None
    found = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found[number] = json.loads(line)
        except ValueError:
            raise exit_with(f"file: line {number} is not JSON", EXIT_USAGE) from None
        if not isinstance(found[number], dict):
            raise exit_with(f"file: line {number} is not a JSON object", EXIT_USAGE)
    if not found:
        raise exit_with("file: there is no request in it", EXIT_USAGE)
    return found


@contextmanager
def _connect(url: str) -> Iterator[DarkroomClient]:
    """A client whose errors end the command in one line."""
    try:
        check_url(url)
        with DarkroomClient(url) as client:
            yield client
    except InvalidParameter as error:
        raise exit_with(f"{error.field}: {error.message}", EXIT_USAGE) from None
    except DarkroomError as error:
        raise exit_with(error.message, EXIT_USAGE if error.status == 422 else 1) from None
    except OSError as error:
        raise exit_with(f"the pictures could not be saved: {error.strerror}") from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
