"""Commands that wait for jobs: their time limits hold, a restart is waited for, and jobs end with them."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from serve_app.cli import waiting
from serve_app.cli.main import app
from serve_app.cli.results import SavedJob, save, save_all
from serve_app.cli.waiting import follow
from serve_app.client import DarkroomClient, DarkroomError

RUNNING = {"id": "7", "state": "running", "results": []}
DONE = {"id": "7", "state": "succeeded", "results": []}
IMAGE = {"index": 0, "seed": 3, "format": "png", "width": 64, "height": 64}

Outcome = dict[str, Any] | Exception


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


class Script:
    """Answers what it is asked for in turn, the last for ever; pictures whose address ends in "gone" are not there."""

    def __init__(self, *jobs: Outcome) -> None:
        self.jobs, self.cancelled = list(jobs), False
        self.client = DarkroomClient("http://test", retries=0, transport=httpx.MockTransport(self))

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            self.cancelled = True
            return httpx.Response(200, json=RUNNING)
        if "jobs" not in request.url.path:
            return httpx.Response(404 if request.url.path.endswith("gone") else 200, content=b"pixels")
        outcome = self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0]
        if isinstance(outcome, Exception):
            raise outcome
        return httpx.Response(200, json=outcome)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.cli.waiting.time.sleep", lambda _: None)


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_waiting_takes_no_longer_than_its_time_out(silent: str) -> None:
    began = time.monotonic()
    result = run("jobs", "wait", "7", "--timeout", "1", "--url", silent)
    assert result.exit_code == 6
    assert time.monotonic() - began < 2


def test_a_time_out_that_is_no_number_is_refused(silent: str) -> None:
    assert run("jobs", "wait", "7", "--timeout", "nan", "--url", silent).exit_code == 2


@pytest.mark.usefixtures("no_pauses")
def test_a_server_that_restarts_is_waited_for() -> None:
    away = [httpx.ConnectError("refused")] * 20
    assert follow(Script(RUNNING, *away, DONE).client, "7") == (DONE, True)
    with pytest.raises(DarkroomError, match="no server"):
        follow(Script(*away, DONE).client, "7")


@pytest.mark.usefixtures("no_pauses")
def test_a_server_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "AWAY_S", 0.0)
    with pytest.raises(DarkroomError, match="no server"):
        follow(Script(RUNNING, httpx.ConnectError("refused")).client, "7")


def test_every_picture_that_is_there_is_saved(tmp_path: Path) -> None:
    gone, there = IMAGE | {"index": 1, "url": "/gone"}, IMAGE | {"url": "/there"}
    images = [[gone], [there], [there, gone]]
    results = [{"index": index, "images": each} for index, each in enumerate(images)]
    script, saved = Script(DONE | {"results": results}), SavedJob(tmp_path, False, lambda index: index, "entry")
    save_all(script.client, "7", saved)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0001-0.png", "0002-0.png"]
    assert saved.errors == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BrokenPipeError(32, "Broken pipe"), OSError(28, "full")])
def test_a_job_that_nobody_waits_for_any_more_is_cancelled(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(SavedJob, "add", failing)
    script = Script(RUNNING)
    with pytest.raises(type(error)):
        save_all(script.client, "7", SavedJob(tmp_path, False, lambda index: index, "entry"))
    assert script.cancelled


def test_a_job_that_cannot_be_cancelled_is_told_in_time(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("serve_app.cli.results.follow", interrupted)
    monkeypatch.setattr(waiting, "CANCEL_SECONDS", 0.3)
    began = time.monotonic()
    with DarkroomClient(silent) as client, pytest.raises(KeyboardInterrupt):
        save_all(client, "7", SavedJob(tmp_path, False, lambda index: index, "entry"))
    assert time.monotonic() - began < 2
    assert "darkroom jobs cancel 7" in capsys.readouterr().err


def test_ctrl_c_while_a_job_is_submitted_to_go_on_cancels_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, submitted = DarkroomClient.submit, list[str]()

    def interrupted(self: DarkroomClient, *arguments: Any, **more: Any) -> str:
        submitted.append(submit(self, *arguments, **more))
        if len(submitted) == 1:
            raise KeyboardInterrupt
        return submitted[-1]

    monkeypatch.setattr(DarkroomClient, "submit", interrupted)
    (tmp_path / "asked.jsonl").write_text('{"prompt": "a"}\n' * 2)
    cancelled = list[str]()
    monkeypatch.setattr(DarkroomClient, "cancel_job", lambda _, job_id: cancelled.append(job_id))
    assert run("jobs", "submit", str(tmp_path / "asked.jsonl"), "--url", url).exit_code == 130
    assert cancelled == [submitted[0]] == [submitted[1]]


def test_after_a_failed_write_a_file_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cup.png"
    path.write_bytes(b"good")

    def half(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="No space") as caught:
            save(path, b"new")
    assert caught.value.filename == str(path)
    assert [path.read_bytes(), list(tmp_path.iterdir())] == [b"good", [path]]
    long = tmp_path / f"{'a' * 250}.png"
    save(long, b"new")
    assert long.read_bytes() == b"new"


def test_a_stream_that_is_lost_has_told_of_what_it_saved(tmp_path: Path) -> None:
    told = json.dumps(IMAGE | {"data": "cGl4ZWxz"})
    body = f"event: image\ndata: {told}\n\n".encode()

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + body
            )

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        result = run("generate", "a", "-o", str(tmp_path / "a.png"), "--num-images", "2", "--json", "--url", url)
        thread.join()
    assert result.exit_code == 6
    document = json.loads(result.stdout)
    assert [image["path"] for image in document["images"]] == [str(tmp_path / "a-0.png")]
    assert document["error"]["code"] == "connection_lost"
