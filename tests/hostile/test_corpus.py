"""The corpus: every hostile request has its one right answer, and the server is as well afterwards as before.

A general law of answers that is not in the rows: nothing comes back, and nothing is logged, of what was sent; every
answer has its headers and comes in time; no file, connection or process is opened; memory stays where it was.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.hostile import contents, pictures, sdapi, transport, upscale, v1, verify, works
from tests.hostile.rows import BEFORE, GOOD_BODY, JSON, TEXT_DOOR, Row
from tests.hostile.server import OPENED, STEERED
from tests.hostile.wire import Answer, exchange, leave, request
from tests.serve_app.servers import free_port

ROOT: Final = Path(__file__).parents[2]
ROWS: Final = (
    *transport.ROWS,
    *contents.ROWS,
    *pictures.ROWS,
    *works.ROWS,
    *v1.ROWS,
    *sdapi.ROWS,
    *upscale.ROWS,
    *verify.ROWS,
)
GOOD: Final = Row("a good request", request("POST", TEXT_DOOR, JSON, GOOD_BODY), 200)

IN_TIME_S: Final = 2.0
PASSES: Final = 3
GROWTH_BYTES: Final = 16 * 2**20
"""Of the server's memory over the whole corpus, sent again and again. Each time that is 28 MiB of requests."""

FAITHFUL: Final = {name: "65536" for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")} | {
    "MALLOC_ARENA_MAX": "1"
}
"""What has been freed leaves the process, so that its memory is what it holds. Of glibc."""

MARKER: Final = b"SECRET"
FOREIGN: Final = (
    b"Traceback",
    b"pydantic",
    b"starlette",
    b"PIL",
    b"Pillow",
    b".py",
    b"/usr",
    b"Error(",
    b"0x",
    b"<html",
)
"""What no answer may hold: other libraries' words, places in the code or in memory."""


@dataclass
class Server:
    """The process, and the file that it logs to."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    @property
    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def ask(self, row: Row) -> Answer | None:
        return exchange(self.port, row.sent)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port, log = free_port(), tmp_path_factory.mktemp("hostile") / "log"
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "tests.hostile.server", str(port)]
        with subprocess.Popen(command, stderr=stream, cwd=ROOT, env=os.environ | FAITHFUL) as process:
            running = Server(process, port, log)
            try:
                wait_until_it_answers(running)
                yield running
            finally:
                process.terminate()


def wait_until_it_answers(server: Server) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.process.poll() is None:
        with suppress(OSError):
            if server.ask(GOOD):
                return
        time.sleep(0.1)
    pytest.fail(server.log.read_text())


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_it_has_its_answer(server: Server, row: Row) -> None:
    answer = server.ask(row)
    if answer is not None and answer.seconds > IN_TIME_S:
        # This machine may have had something else to do.
        answer = server.ask(row)
    assert answer is not None
    assert answer.seconds < IN_TIME_S
    if row.status == 200:
        assert answer.status == 200, answer.body[:500]
        check_headers(answer)
    else:
        check_problem(row, answer)


def check_problem(row: Row, answer: Answer) -> None:
    assert answer.status == row.status, answer.body[:500]
    check_headers(answer)
    check_silence(answer)
    if row.sent.method == "HEAD":
        return
    body = answer.problem
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["status"], body["request_id"]) == (row.status, answer.headers["x-request-id"])
    if row.code is not None:
        assert answer.code == row.code, body
    if row.param is not None:
        assert body["error"]["param"] == row.param
    if row.status == 405:
        assert answer.headers["allow"]
    if row.status == 413 or row.code in BEFORE:
        # Nor is anything after it on the same connection looked at.
        assert answer.headers["connection"] == "close"


def check_headers(answer: Answer) -> None:
    for name, values in Counter(name.lower() for name in answer.headers).items():
        assert values == 1, f"{name} is there {values} times"
    assert answer.headers["x-request-id"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "total;dur=" in answer.headers["server-timing"]


def check_silence(answer: Answer) -> None:
    """A refusal holds nothing of the request, and no other library's words."""
    told = answer.body + str(answer.headers).encode()
    assert MARKER not in told
    for words in FOREIGN:
        assert words not in told


@pytest.mark.parametrize("sent", transport.GONE, ids=lambda sent: repr(sent.pieces[0][-20:]))
def test_who_leaves_at_once_leaves_nothing_behind(server: Server, sent: Any) -> None:
    leave(server.port, sent)
    assert server.ask(GOOD).status == 200  # type: ignore[union-attr]


def test_two_requests_on_one_connection_get_their_own_answers(server: Server) -> None:
    first = request("GET", "/SECRET").pieces[0].replace(b"Connection: close\r\n", b"")  # type: ignore[union-attr]
    both = first + GOOD.sent.pieces[0]  # type: ignore[operator]
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as wire:
        wire.sendall(both)
        heard = b"".join(iter(lambda: wire.recv(65_536), b""))
    assert (heard.count(b"HTTP/1.1 404"), heard.count(b"HTTP/1.1 200")) == (1, 1)


def test_all_of_it_again_takes_no_more_memory_and_leaves_the_server_well(server: Server) -> None:
    """The first time, test by test, has warmed up what there is to warm up."""
    before = server.memory
    for row in ROWS * PASSES:
        server.ask(row)
    assert server.ask(GOOD).status == 200  # type: ignore[union-attr]
    print("GROWTH", server.memory - before, before)
    assert server.memory - before < GROWTH_BYTES
    assert server.process.poll() is None


def test_nothing_was_opened_and_nothing_steered(server: Server) -> None:
    assert not [line for line in server.lines() if line.startswith((OPENED, STEERED))]


def test_the_log_is_json_and_knows_nothing_of_what_was_sent(server: Server) -> None:
    lines = server.lines()
    assert MARKER.decode() not in "\n".join(lines)
    for line in map(json.loads, lines):
        assert "exception" not in line, line
        # Pillow warns of what it finds in EXIF.
        assert line["level"] == "INFO" or line["logger"] == "py.warnings", line
    requests = [line for line in map(json.loads, lines) if "route" in line]
    ours = [row for row in ROWS if row.code not in BEFORE]
    assert len(requests) >= len(ours)
    assert {line["outcome"] for line in requests} <= {"finished", "refused", "cancelled"}
