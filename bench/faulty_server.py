"""The process of a server under test: `darkroom serve`'s own cluster, with replicas that can be told to break.

The first line on standard input is an `Order`; then every line is a command, and each is answered with one JSON line on
standard output. It ends when its standard input is closed. Everything else that it and Ray have to say goes to standard
error.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from bench.faulty_replica import FaultyReplica, fail_starts, faulty_replica
from serve_app import app
from serve_app.config import AppConfig
from serve_app.local_cluster import APP_NAME, Order, start, stop


class FaultyServer:
    """Does what it is told, one command after the other."""

    def __init__(self, order: Order) -> None:
        self._config = order.config
        self._folder = Path(order.temp_dir)
        self._replica: type[FaultyReplica] = faulty_replica(self._folder)
        # `start` makes the cluster just as users get it, and takes the builder from this module.
        app.build_app = self._build
        start(order)

    def obey(self, command: Mapping[str, Any]) -> Any:
        """The answer to `command`, whose `do` names what to do."""
        match command["do"]:
            case "state":
                return self._all_replicas("state")
            case "inject":
                return self._all_replicas("inject", command["faults"])
            case "fail-starts":
                return fail_starts(self._folder, command["times"])
            case "redeploy":
                return self._redeploy(command["changes"])
        raise ValueError(f"there is no command {command['do']!r}")

    def _build(self, config: AppConfig) -> Any:
        return app.application(config, self._replica)

    def _all_replicas(self, method: str, *arguments: Any) -> list[Any]:
        from ray import serve

        handle = serve.get_deployment_handle(self._config.deployments[0].name, APP_NAME)
        answers: list[Any] = handle.broadcast(method, *arguments).results(timeout_s=10)
        return answers

    def _redeploy(self, changes: Mapping[str, Any]) -> None:
        """Returns when the changed application runs."""
        from ray import serve

        deployment = self._config.deployments[0].model_copy(update=dict(changes))
        self._config = self._config.model_copy(update={"deployments": (deployment,)})
        serve.run(self._build(self._config), name=APP_NAME, route_prefix="/")


def main() -> None:
    answers = _take_standard_output()
    server = FaultyServer(Order.model_validate_json(sys.stdin.readline()))
    _say(answers, "ready")
    for line in sys.stdin:
        _say(answers, server.obey(json.loads(line)))
    stop()
    # Not sys.exit: threads of Ray's would be waited for.
    os._exit(0)


def _take_standard_output() -> TextIO:
    """Our own way to the bench; whatever Ray prints goes to standard error instead."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, what: Any) -> None:
    print(json.dumps(what), file=answers, flush=True)


if __name__ == "__main__":
    main()
