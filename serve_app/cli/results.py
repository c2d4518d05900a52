"""Saves a job's pictures as they come, and says so: in lines for people, or one JSON object a line."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from serve_app.cli.exits import error_json
from serve_app.client import DarkroomClient, ServedEntry
from serve_app.client.messages import POLL_SECONDS, UNFINISHED


@dataclass
class SavedJob:
    """Saves into `output` what of a job was not saved before. `errors` counts the entries that failed.

    `named` is how people know an entry: its number or name in pictures' names and in messages; `word` is that for it.
    """

    output: Path
    as_json: bool
    named: Callable[[int], int | str]
    word: str
    seen: set[int] = field(default_factory=set)
    errors: int = 0

    def add(self, client: DarkroomClient, job: dict[str, Any]) -> None:
        """Saves the pictures of the entries that have ended since."""
        for entry in client.entries_of(job, but=self.seen):
            self.seen.add(entry.index)
            self._save(entry)

    def _save(self, entry: ServedEntry) -> None:
        name = self.named(entry.index)
        for image in entry.images:
            stem = f"{name:04d}" if isinstance(name, int) else name
            path = self.output / f"{stem}-{image.index}.{image.format}"
            path.write_bytes(image.data)
            told = {self.word: name, "image": image.index, "seed": image.seed, "path": str(path)}
            say(f"{path} (seed {image.seed})", told if self.as_json else None)
        if entry.error is not None:
            self.errors += 1
            typer.echo(f"{self.word} {name}: {entry.error.message}", err=True)
            if self.as_json:
                say("", {self.word: name, "error": error_json(entry.error)})


def save_all(client: DarkroomClient, job_id: str, saved: SavedJob) -> dict[str, Any]:
    """Saves a job's pictures as they come, and returns the job once it is over. Ctrl-C cancels it."""
    try:
        say(f"job {job_id}", {"job": job_id} if saved.as_json else None)
        job = client.job(job_id)
        saved.add(client, job)
        while not is_over(job):
            time.sleep(POLL_SECONDS)
            job = client.job(job_id)
            saved.add(client, job)
    except KeyboardInterrupt:
        client.cancel_job(job_id)
        raise
    return job


def say(line: str, told: dict[str, Any] | None) -> None:
    """Prints `line`, or what is `told` in its place, as JSON."""
    print(line if told is None else json.dumps(told), flush=True)


def is_over(job: dict[str, Any], *, uploads: bool = False) -> bool:
    """Whether the job has ended; with `uploads` also whether none of those is pending."""
    pending = uploads and job.get("uploads", {}).get("pending", 0)
    return job["state"] not in UNFINISHED and not pending


def wait_for(
    client: DarkroomClient, job_id: str, *, uploads: bool = False, timeout_s: float | None = None
) -> tuple[dict[str, Any], bool]:
    """Returns the job once it is over, and whether it is: after `timeout_s` seconds it is returned as it is."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        job = client.job(job_id)
        if is_over(job, uploads=uploads):
            return job, True
        if deadline is not None and time.monotonic() >= deadline:
            return job, False
        time.sleep(POLL_SECONDS)


def summary_of(job: dict[str, Any]) -> dict[str, Any]:
    """Returns a job without its results."""
    return {name: value for name, value in job.items() if name != "results"}
