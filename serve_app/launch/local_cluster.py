"""The process behind `darkroom serve`: a Ray cluster of its own that runs the application. Started by `launcher.py`.

The first line on standard input is its `Order`. It answers with one JSON line on standard output, `ready` or `failed`,
and serves until its standard input is closed. That also happens if the launcher is killed, so it never stays behind.
All other output, its own and Ray's, goes to standard error.
"""

import json
import logging
import os
import re
import secrets
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TextIO

import httpx
from pydantic import BaseModel

from serve_app.config.server import AppConfig
from serve_app.launch.one_node import TooLittleRoom, check_room, count_cpus, fit_to_one_node
from serve_app.serving.node_environment import HEAD_TIMEOUT_VARIABLE, NODE_ENVIRONMENT, read_head_timeout_s

if TYPE_CHECKING:
    from ray.serve import Application

HEALTH_PATH = "/ads/v2/diffusion/health"
APP_NAME = "darkroom"

_HEALTHY_WITHIN_S = 120.0
# Images pass through the store one by one; Ray's default, a third of the memory, would be lost to the models.
_OBJECT_STORE_BYTES = 256 * 2**20
# The line of a constructor's traceback, as Ray formats it, that has the original error.
_LOAD_ERROR = re.compile(r"ModelLoadError: (.+)")


class Order(BaseModel):
    """The configuration to serve, and the address to serve it on."""

    config: AppConfig
    host: str
    port: int
    temp_dir: str


def main() -> None:
    """Serves one order."""
    order = Order.model_validate_json(sys.stdin.readline())
    answers = _take_standard_output()
    try:
        start(order)
    except Exception as error:
        logging.getLogger(__name__).exception("Darkroom did not start")
        _answer(answers, "failed", explain(error))
        # Not sys.exit, which would wait for Ray's threads; the launcher ends what is left in any case.
        os._exit(1)
    _answer(answers, "ready", "")
    sys.stdin.read()
    stop()
    shutil.rmtree(order.temp_dir, ignore_errors=True)
    os._exit(0)


def start(order: Order) -> None:
    """Starts the cluster; returns once its health page, through the real port, says healthy: engines are warm."""
    prepare_environment()
    # Completely imported before two threads import what needs it.
    import ray
    from ray.job_config import JobConfig

    with ThreadPoolExecutor(1, thread_name_prefix="build-app") as builder:
        # Building it takes a second or two of imports, and Ray's start is a wait for other processes.
        application = builder.submit(_build_application, fit_to_one_node(order.config))
        # Ray has all workers import from the current folder first, except for a client's job, which may have
        # been sent from another machine. Nothing else depends on that.
        ray.init(
            address="local",
            namespace=APP_NAME,
            num_cpus=count_cpus(order.config),
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=order.temp_dir,
            job_config=JobConfig(_client_job=True),
        )
    check_room(order.config, ray.cluster_resources())
    _serve(application.result(), order)
    wait_until_healthy(order.host, order.port)


def _build_application(config: AppConfig) -> "Application":
    from serve_app.app import build_app

    return build_app(config)


def _serve(application: "Application", order: Order) -> None:
    """Starts Serve with its proxy, and runs `application` on it; returns once its replicas are ready."""
    from ray import serve

    ingress = order.config.ingress
    serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": order.host,
            "port": order.port,
            "request_timeout_s": ingress.request_timeout_s,
            "keep_alive_timeout_s": ingress.keep_alive_timeout_s,
        },
        logging_config=order.config.logging.serve_options(),
    )
    serve.run(application, name=APP_NAME, route_prefix="/")


def prepare_environment() -> None:
    """Sets what Ray reads from the environment at import or start-up; its processes inherit it."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(
        # The only one of these that the user may choose.
        {**NODE_ENVIRONMENT, HEAD_TIMEOUT_VARIABLE: f"{read_head_timeout_s():g}"},
        RAY_USAGE_STATS_ENABLED="0",
        # Off, this node is 127.0.0.1 and none of Ray's processes listens elsewhere, as on the systems in its name.
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        # A Ray cluster runs code for anybody who reaches its ports; with a token, only for its own processes.
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
    )


def stop() -> None:
    """Drains the replicas and ends the cluster. The launcher limits how long that may take."""
    import ray
    from ray import serve

    # First the application alone: `shutdown` begins by killing the proxies, and with them the connections of clients
    # whose images are still being made.
    serve.delete(APP_NAME)
    serve.shutdown()
    ray.shutdown(wait_for_processes=True)


def wait_until_healthy(host: str, port: int) -> None:
    """Requests the health page through the port until the answer is 200. Raises TimeoutError if that takes too long."""
    url = f"http://{client_host_of(host)}:{port}{HEALTH_PATH}"
    deadline = time.monotonic() + _HEALTHY_WITHIN_S
    # trust_env would send the request to a proxy that the user has configured for the internet.
    with httpx.Client(trust_env=False, timeout=10.0) as client:
        while time.monotonic() < deadline:
            try:
                if client.get(url).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    raise TimeoutError("the server came up, but it did not become healthy")


def client_host_of(host: str) -> str:
    """The host by which a client on this machine reaches a server that is bound to `host`, as a URL has it."""
    if host in {"0.0.0.0", ""}:
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def explain(error: Exception) -> str:
    """Explains the error to the user in one line: the model's own complaint if there is one, else the kind of error."""
    if isinstance(error, TooLittleRoom):
        return str(error)
    found = _LOAD_ERROR.findall(f"{error}\n{_read_statuses()}")
    if found:
        return str(found[-1]).strip()
    if isinstance(error, TimeoutError):
        return str(error)
    return "the application could not be started; the log says why"


def _read_statuses() -> str:
    """Returns what Serve has kept of a failed constructor's traceback."""
    try:
        from ray import serve

        application = serve.status().applications[APP_NAME]
    except Exception:
        return ""
    return "\n".join([application.message, *(state.message for state in application.deployments.values())])


def _take_standard_output() -> TextIO:
    """Returns our own channel to the launcher; whatever Ray prints from now on goes to standard error instead."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _answer(answers: TextIO, kind: str, message: str) -> None:
    print(json.dumps({kind: message}), file=answers, flush=True)


if __name__ == "__main__":
    main()
