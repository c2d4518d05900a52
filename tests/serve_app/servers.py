"""Real servers for tests: an HTTP server in this process, and a whole one on a Ray cluster of its own."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from serve_app.config import AppConfig
from serve_app.launcher import Server, adopt_orphans, make_temp_dir

READY_WITHIN_S = 120.0


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def tiny_config(checkpoint: Path, **deployment: Any) -> AppConfig:
    """One CPU replica of the checkpoint at `checkpoint`, as model `tiny` (also `a/tiny-model`), quick to end."""
    hosted = {"name": "tiny", "models": ["tiny"], "device": "cpu", "dtype": "float32", "threads": 1, "num_cpus": 0.1}
    patience = {"graceful_shutdown_timeout_s": 3, "graceful_shutdown_wait_loop_s": 0.2, "health_check_period_s": 1}
    return AppConfig.model_validate(
        {
            "models": [{"name": "tiny", "source": str(checkpoint), "aliases": ["a/tiny-model"]}],
            "deployments": [hosted | patience | deployment],
            "ingress": {"graceful_shutdown_timeout_s": 4, "graceful_shutdown_wait_loop_s": 0.2},
        }
    )


@contextlib.contextmanager
def ray_server(config: AppConfig, port: int | None = None) -> Iterator[Server]:
    """`config` served on a Ray cluster of its own, ready: `http://127.0.0.1:{server.port}`.

    Takes some 15 seconds to start: share one by a fixture of session scope. Afterwards none of its processes is left.
    """
    server = Server(config, "127.0.0.1", port or free_port(), make_temp_dir())
    adopt_orphans()
    server.start()
    try:
        news = server.news.get(timeout=READY_WITHIN_S)
        assert news == ("ready", ""), f"{news}\n{server.log_file.read_text()}"
        server.ready = True
        yield server
    finally:
        server.end()


@contextlib.contextmanager
def http_server(app: FastAPI) -> Iterator[str]:
    """`app` behind a real socket, on a thread of this process. Gives its URL."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
