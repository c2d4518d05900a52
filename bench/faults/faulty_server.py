"""The process of a server under test: `darkroom serve`'s own cluster, with replicas that break on command.

The first line on standard input is an `Order`; then every line is a command, and each is answered with one JSON line on
standard output, `done` or `failed`. It ends when its standard input is closed. All other output, of it and of
Ray, goes to standard error.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from bench.faults.faulty_replica import FaultyReplica, fail_starts, faulty_replica
from serve_app.launch.local_cluster import APP_NAME, Order, start, stop

log = logging.getLogger(__name__)

COMMAND_S = 5.0


class FaultyServer:
    """Does what it is told, one command after the other."""

    def __init__(self, order: Order) -> None:
        self._config = order.config
        self._folder = Path(order.temp_dir)
        self._replica: type[FaultyReplica] = faulty_replica(self._folder)
        # The cluster and its settings are made just as users get them; then the replicas are exchanged.
        start(order)
        self._redeploy({})

    def obey(self, command: Mapping[str, Any]) -> Any:
        """The answer to `command`, whose `do` names what to do."""
        match command["do"]:
            case "state":
                return self._all_replicas("state")
            case "replicas":
                return self._replica_states()
            case "inject":
                return self._all_replicas("inject", command["faults"])
            case "fail-starts":
                return fail_starts(self._folder, command["times"])
            case "redeploy":
                return self._redeploy(command["changes"])
        raise ValueError(f"there is no command {command['do']!r}")

    def _all_replicas(self, method: str, *arguments: Any) -> list[Any]:
        from ray import serve

        handle = serve.get_deployment_handle(self._config.deployments[0].name, APP_NAME)
        answers = handle.broadcast(method, *arguments).results(timeout_s=COMMAND_S, return_exceptions=True)
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def _replica_states(self) -> dict[str, int]:
        """How many replicas Serve calls STARTING, RUNNING and so on."""
        from ray import serve

        deployments = serve.status().applications[APP_NAME].deployments
        states = deployments[self._config.deployments[0].name].replica_states
        return {str(getattr(state, "value", state)): count for state, count in states.items()}

    def _redeploy(self, changes: Mapping[str, Any]) -> None:
        """Returns when the changed application runs."""
        # Not before the cluster has started: Ray reads its settings while it is imported.
        from ray import serve

        from serve_app.app import build_application

        deployment = self._config.deployments[0].model_copy(update=dict(changes))
        self._config = self._config.model_copy(update={"deployments": (deployment,)})
        serve.run(build_application(self._config, self._replica), name=APP_NAME, route_prefix="/")


def main() -> None:
    answers = _take_standard_output()
    server = FaultyServer(Order.model_validate_json(sys.stdin.readline()))
    _say(answers, "ready")
    for line in sys.stdin:
        _say(answers, _run_command(server, json.loads(line)))
    stop()
    # Not sys.exit: threads of Ray's would be waited for.
    os._exit(0)


def _run_command(server: FaultyServer, command: Mapping[str, Any]) -> dict[str, Any]:
    """What came of it. That a command fails, as to replicas that are gone, must not end the server."""
    try:
        return {"done": server.obey(command)}
    except Exception as error:
        log.exception("the command %s failed", command["do"])
        return {"failed": type(error).__name__}


def _take_standard_output() -> TextIO:
    """Our own way to the bench; whatever Ray prints goes to standard error instead."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, what: Any) -> None:
    print(json.dumps(what), file=answers, flush=True)


if __name__ == "__main__":
    main()
