"""A cluster whose application can be replaced, as `serve deploy` does it: for tests of updates and of growth.

Started by `redeployable`. The first line on standard input is an `Order`; each further one is an `AppConfig`. Each is
answered by a line, `ready` or `failed`, once Serve has decided.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.config.server import AppConfig
from serve_app.launch.launcher import make_temp_dir
from serve_app.launch.local_cluster import APP_NAME, Order, start, stop
from serve_app.launch.processes import adopt_orphans, sweep
from tests.serve_app.servers import ROOT, Launched, free_port


@dataclass
class Redeployable(Launched):
    """A running cluster, and the way to give it another configuration."""

    def deploy(self, config: AppConfig) -> str:
        """`ready` or `failed`, once all replicas are of the new version or Serve has given up."""
        self.send(config.model_dump_json(exclude_unset=True))
        return self.first_line()

    def send(self, line: str) -> None:
        """One line to the cluster's process."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


@contextlib.contextmanager
def redeployable(config: AppConfig) -> Iterator[Redeployable]:
    """A cluster that serves `config`; none of its processes is left afterwards."""
    order = Order(config=config, host="127.0.0.1", port=free_port(), temp_dir=str(make_temp_dir()))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "tests.serve_app.redeployer"]
    with subprocess.Popen(command, text=True, cwd=ROOT, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        server = Redeployable(process, order.port)
        server.send(order.model_dump_json(exclude_unset=True))
        try:
            assert server.first_line() == "ready"
            yield server
        finally:
            process.stdin.close()
            process.wait(timeout=60)


def main() -> None:
    adopt_orphans()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    order = Order.model_validate_json(sys.stdin.readline())
    # Whatever happens, nothing stays behind.
    threading.Timer(600, _give_up).start()
    try:
        start(order)
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            print(_deployed(AppConfig.model_validate_json(line)), file=answers, flush=True)
        stop()
    finally:
        sweep(5)
        os._exit(0)


def _give_up() -> None:
    sweep(5)
    os._exit(1)


def _deployed(config: AppConfig) -> str:
    from ray import serve

    from serve_app.app import build_app

    try:
        serve.run(build_app(config), name=APP_NAME, route_prefix="/")
    except RuntimeError:
        return "failed"
    return "ready"


if __name__ == "__main__":
    main()
