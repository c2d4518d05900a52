"""`darkroom serve` without Ray: ports, folders, signals, processes. `test_ray_launcher.py` runs the real thing."""

import json
import os
import queue
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from serve_app.config.server import load_config
from serve_app.launch import launcher
from serve_app.launch.launcher import (
    CHILD,
    EXIT_PORT_IN_USE,
    LaunchError,
    Server,
    check_port,
    handle_stop_signals,
    hold_port,
    make_temp_dir,
    run,
)
from serve_app.launch.local_cluster import Order, client_host_of
from serve_app.serving.import_path import restrict_to_installed
from tests.serve_app.servers import ROOT, free_port, plant_modules, planted_that_ran


def test_a_port_in_use_is_refused_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=f"port {port} on 127.0.0.1 is in use") as caught:
            check_port("127.0.0.1", port)
    assert caught.value.exit_code == EXIT_PORT_IN_USE
    assert "\n" not in str(caught.value)


def test_a_port_shared_by_so_reuseport_is_in_use_too() -> None:
    """Ray's proxies listen in that way, so a second server would steal every other connection of the first."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LaunchError, match="in use"):
            check_port("127.0.0.1", taken.getsockname()[1])


def test_a_free_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    check_port("127.0.0.1", port)


def test_two_servers_that_start_at_once_do_not_share_a_port() -> None:
    """Each would find it free, and Ray would let both listen on it."""
    port = free_port()
    with hold_port("127.0.0.1", port):
        with pytest.raises(LaunchError, match="in use"), hold_port("127.0.0.1", port):
            pass
        with pytest.raises(LaunchError, match="in use"):
            check_port("0.0.0.0", port)


def test_a_held_port_is_free_for_the_proxy_and_takes_none_of_its_connections() -> None:
    with hold_port("127.0.0.1", port := free_port()), socket.socket() as proxy:
        proxy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        proxy.bind(("127.0.0.1", port))
        proxy.listen()
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                proxy.settimeout(5)
                proxy.accept()[0].close()


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("192.0.2.1", 8000)])
def test_an_impossible_address_is_refused(host: str, port: int) -> None:
    with pytest.raises(LaunchError):
        check_port(host, port)


def test_ray_gets_a_folder_that_is_short_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Unix socket paths have 107 bytes; some systems have very long temporary folders."""
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(long))
    folder = make_temp_dir()
    try:
        assert len(str(folder)) < 40
    finally:
        folder.rmdir()


def test_the_folder_is_its_owners_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray opens its own to everybody, so that has to lie within one that nobody else can enter."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    before = os.umask(0)
    try:
        folder = make_temp_dir()
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    server = Server(load_config("demo"), "127.0.0.1", 8000, folder)
    assert server.rays_folder.parent == folder == server.log_file.parent


def test_the_server_imports_nothing_from_the_folder_that_it_is_started_in(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}::.:nearby:"}
    for folder in (tmp_path, tmp_path / "nearby"):
        plant_modules(folder)
    done = subprocess.run(
        CHILD, cwd=tmp_path, env=restrict_to_installed(environment), input=b"", capture_output=True, check=False
    )
    assert b"ValidationError" in done.stderr  # of the order that it did not get: so far it has come
    assert planted_that_ran(tmp_path) == []


def test_the_command_imports_nothing_from_the_current_folder(tmp_path: Path) -> None:
    """Started as pip installs it: by a script elsewhere."""
    plant_modules(tmp_path / "here")
    script = tmp_path / "darkroom"
    script.write_text("import sys\nfrom serve_app.cli.main import main\nsys.exit(main())\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), "--help"]
    done = subprocess.run(command, cwd=tmp_path / "here", env=environment, capture_output=True, check=True)
    assert b"serve" in done.stdout
    assert planted_that_ran(tmp_path / "here") == []


def test_signals_become_news_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    messages: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    with handle_stop_signals(messages):
        os.kill(os.getpid(), signal.SIGTERM)
        assert messages.get(timeout=1)[0] == "stop"
    assert signal.getsignal(signal.SIGTERM) is before


def a_server(tmp_path: Path) -> Server:
    return Server(load_config("demo"), "127.0.0.1", 8000, tmp_path)


@pytest.fixture
def unstarted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    monkeypatch.setattr(Server, "start", lambda _self: None)
    return a_server(tmp_path)


def test_the_url_is_said_once_when_it_is_ready(unstarted: Server) -> None:
    said: list[str] = []
    for messages in (("ready", ""), ("stop", "")):
        unstarted.messages.put(messages)
    run(unstarted, said.append)
    assert said == ["Darkroom is ready at http://127.0.0.1:8000"]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([("failed", "model 'x': there is no folder")], "model 'x': there is no folder"),
        ([("gone", "")], "the server did not start"),
        ([("ready", ""), ("gone", "")], "the server ended unexpectedly"),
    ],
)
def test_a_failure_is_one_line_that_names_the_log(
    unstarted: Server, messages: list[tuple[str, str]], expected: str
) -> None:
    for item in messages:
        unstarted.messages.put(item)
    with pytest.raises(LaunchError, match=expected) as caught:
        run(unstarted, lambda _line: None)
    assert str(unstarted.log_file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_child_that_says_nothing_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "CHILD", ("/bin/true",))
    server = a_server(tmp_path)
    server.start()
    assert server.messages.get(timeout=5)[0] == "gone"
    assert server.process is not None
    with server.process:
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_child_that_says_what_nobody_understands_is_gone(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    (tmp_path / "answers").write_bytes(b"Segmentation fault\n")
    listening = threading.Thread(target=server._listen, args=((tmp_path / "answers").open("rb"),))
    listening.start()
    assert server.messages.get(timeout=5) == ("gone", "")
    listening.join()


@pytest.mark.parametrize("name", ["compact", "demo", "production"])
def test_an_order_survives_the_way_to_the_child(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    sent = {"config": config.model_dump(mode="json", exclude_unset=True), "host": "h", "port": 1, "temp_dir": "t"}
    assert Order.model_validate_json(json.dumps(sent)).config == config


@pytest.mark.parametrize(
    ("bound", "asked"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("box", "box")],
)
def test_the_health_question_goes_to_an_address_that_answers(bound: str, asked: str) -> None:
    assert client_host_of(bound) == asked


def test_waiting_for_a_slow_child_ends_with_a_second_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = a_server(tmp_path)
    server.ready = True
    monkeypatch.setattr(launcher, "sweep", lambda _within: None)
    with subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE) as process:
        server.process = process
        server.messages.put(("stop", ""))
        started = time.monotonic()
        server.stop()
        process.kill()
    assert time.monotonic() - started < 2.0
