"""`darkroom serve`: runs a server in the foreground, and leaves nothing behind when it ends.

The server itself is a child process (`local_cluster.py`); this one only waits, so that Ctrl-C and SIGTERM act at once
even while the child is deep inside Ray's start-up. Closing the child's standard input asks it to end. Whatever is left
of its process tree after that is killed: on Linux this process adopts orphans, so none can hide.
"""

import contextlib
import errno
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from serve_app.config.server import AppConfig
from serve_app.launch.processes import adopt_orphans, sweep
from serve_app.serving.import_path import restrict_to_installed

EXIT_FAILED = 1
EXIT_PORT_IN_USE = 2

# From Ctrl-C until nothing is left takes at most 15 seconds: these two together, and a margin.
GRACE_S = 10.0
SWEEP_S = 3.0

# `-P`, or Python would import from the current folder first.
CHILD = (sys.executable, "-P", "-m", "serve_app.launch.local_cluster")

# The length of Ray's socket paths below its folder; the system's limit for one is 107 bytes.
_SOCKET_PATH_ROOM = 70

_RAYS_FOLDER = "ray"


class LaunchError(Exception):
    """The server cannot run. The message is one line for the user."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Server:
    """A server's process and the messages about it: `ready`, `failed`, `gone`, or `stop`, which is a signal."""

    config: AppConfig
    host: str
    port: int
    temp_dir: Path
    messages: "queue.SimpleQueue[tuple[str, str]]" = field(default_factory=queue.SimpleQueue)
    process: "subprocess.Popen[bytes] | None" = None
    ready: bool = False

    def start(self) -> None:
        """Starts the child in a session of its own, where the terminal's Ctrl-C does not reach it."""
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                CHILD,
                env=restrict_to_installed(os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True).start()
        order = {
            "config": self.config.model_dump(mode="json", exclude_unset=True),
            "host": self.host,
            "port": self.port,
            "temp_dir": str(self.rays_folder),
        }
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")

    @property
    def log_file(self) -> Path:
        """The child's standard error; the logs of Ray's processes lie beside it."""
        return self.temp_dir / "darkroom.log"

    @property
    def rays_folder(self) -> Path:
        """Ray's folder within `temp_dir`, which only its owner can enter: Ray lets everybody write into its own."""
        return self.temp_dir / _RAYS_FOLDER

    def stop(self) -> None:
        """Asks the child to drain and end, then kills what is left of its process tree; at once if it was not ready."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        if self.ready:
            self._wait_for_exit(GRACE_S)
        sweep(SWEEP_S)
        self.process.poll()

    def _wait_for_exit(self, grace_s: float) -> None:
        """Waits for the child; a second Ctrl-C ends the wait."""
        assert self.process is not None
        deadline = time.monotonic() + grace_s
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                if self.messages.get(timeout=0.1)[0] == "stop":
                    return

    def _listen(self, answers: IO[bytes]) -> None:
        try:
            with answers:
                for line in answers:
                    kind, message = next(iter(json.loads(line).items()))
                    self.messages.put((kind, message))
        finally:
            # Even after a malformed line: the main thread waits for this thread's messages.
            self.messages.put(("gone", ""))


def serve(config: AppConfig, host: str, port: int, say: Callable[[str], Any] = print) -> None:
    """Serves until SIGINT or SIGTERM; `say` gets the one line with the address. Raises LaunchError if it cannot."""
    with hold_port(host, port):
        adopt_orphans()
        server = Server(config, host, port, make_temp_dir())
        with handle_stop_signals(server.messages):
            try:
                run(server, say)
            finally:
                server.stop()
    # Only after a clean end: other errors refer to the log.
    shutil.rmtree(server.temp_dir, ignore_errors=True)


def run(server: Server, say: Callable[[str], Any]) -> None:
    """Starts `server` and returns after a signal. Raises LaunchError if it fails, or ends by itself."""
    server.start()
    while (kind_and_message := server.messages.get())[0] != "stop":
        kind, message = kind_and_message
        if kind != "ready":
            why = message or ("the server ended unexpectedly" if server.ready else "the server did not start")
            raise LaunchError(f"{why} (log: {server.log_file})")
        server.ready = True
        say(f"Darkroom is ready at http://{_format_host(server.host)}:{server.port}")


@contextlib.contextmanager
def hold_port(host: str, port: int) -> Iterator[None]:
    """Holds `host`:`port` for this server while it starts, so that a second one, started meanwhile, is refused as well.

    Raises LaunchError if the port cannot be bound, before anything is started.
    """
    check_port(host, port)
    family, kind, protocol, _, address = _resolve(host, port)
    with socket.socket(family, kind, protocol) as held:
        # Ray's proxy shares its port with other sockets of this user that share it. On Linux a socket that does not
        # listen gets no connections; elsewhere that is not certain.
        if sys.platform == "linux":
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(address)
        yield


def check_port(host: str, port: int) -> None:
    """Raises LaunchError if `host`:`port` cannot be bound."""
    if not 0 < port < 65536:
        raise LaunchError(f"{port} is no port number", EXIT_PORT_IN_USE)
    try:
        family, kind, protocol, _, address = _resolve(host, port)
        with socket.socket(family, kind, protocol) as probe:
            # A connection that ended a moment ago does not hold the port; a listener does, whatever its options.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise LaunchError(
                f"port {port} on {host} is in use; stop what uses it, or choose another (PORT=... or --port ...)",
                EXIT_PORT_IN_USE,
            ) from None
        raise LaunchError(f"cannot listen on {host}:{port}: {error.strerror}", EXIT_PORT_IN_USE) from None


def _resolve(host: str, port: int) -> tuple[Any, ...]:
    """The family, kind, protocol, name and address for a socket."""
    return socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0]


def make_temp_dir() -> Path:
    """Creates a folder for Ray's sockets and logs that only its owner can enter.

    Its path is short enough for the systems' limit on socket paths.
    """
    default = tempfile.gettempdir()
    room = 107 - _SOCKET_PATH_ROOM - len(f"/darkroom-12345678/{_RAYS_FOLDER}")
    parent = default if len(default) < room else "/tmp"
    return Path(tempfile.mkdtemp(prefix="darkroom-", dir=parent))


@contextlib.contextmanager
def handle_stop_signals(messages: "queue.SimpleQueue[tuple[str, str]]") -> Iterator[None]:
    """Turns SIGINT, SIGTERM and SIGHUP into messages. Raises nothing: an exception could come anywhere and get lost."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: messages.put(("stop", ""))) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _format_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
