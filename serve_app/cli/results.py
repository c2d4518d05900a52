"""Saves a job's pictures as they come, and says so: in lines for people, or one JSON object a line."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from deployments.engine.protocol.errors import InvalidParameter
from deployments.whole_files import replaced
from serve_app.cli.exits import error_json
from serve_app.cli.waiting import cancel_job, follow
from serve_app.client import DarkroomClient, ServedEntry
from serve_app.client.answers import reading_answer


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
        """Saves the pictures of the entries that have ended since, each entry's before the next ones are fetched."""
        with reading_answer():
            ended = [result for result in job["results"] if result["index"] not in self.seen]
        for result in ended:
            for entry in client.entries_of({"results": [result]}):
                self._save(entry)
                self.seen.add(entry.index)

    def _save(self, entry: ServedEntry) -> None:
        with reading_answer():
            name = self.named(entry.index)
        for image in entry.images:
            stem = f"{name:04d}" if isinstance(name, int) else name
            path = self.output / f"{stem}-{image.index}.{image.format}"
            save(path, image.data)
            told = {self.word: name, "image": image.index, "seed": image.seed, "path": str(path)}
            say(f"{path} (seed {image.seed})", told if self.as_json else None)
        if entry.error is not None:
            self.errors += 1
            typer.echo(f"{self.word} {name}: {entry.error.message}", err=True)
            if self.as_json:
                say("", {self.word: name, "error": error_json(entry.error)})


def save_all(client: DarkroomClient, job_id: str, saved: SavedJob) -> dict[str, Any]:
    """Saves a job's pictures as they come, and returns the job once it is over.

    It is cancelled where nobody waits for it any more: after Ctrl-C, and where a picture, or the line that says so,
    cannot be written.
    """
    try:
        say(f"job {job_id}", {"job": job_id} if saved.as_json else None)
        job, _ = follow(client, job_id, take=lambda job: saved.add(client, job))
    except (KeyboardInterrupt, OSError):
        cancel_job(client, job_id)
        raise
    return job


def save(path: Path, data: bytes) -> None:
    """Writes a file whole: after an error it is as it was before. Raises OSError with its path."""
    try:
        with replaced(path) as neighbour:
            neighbour.write_bytes(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def make_folder(output: Path) -> None:
    """Makes the folder for pictures, if it is not there. Raises InvalidParameter."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidParameter("output", f"{str(output)!r} cannot be a folder: {error.strerror}") from None


def say(line: str, told: dict[str, Any] | None) -> None:
    """Prints `line`, or what is `told` in its place, as JSON."""
    print(line if told is None else json.dumps(told), flush=True)


def summary_of(job: dict[str, Any]) -> dict[str, Any]:
    """Returns a job without its results."""
    return {name: value for name, value in job.items() if name != "results"}
