"""Deploys the application on the bench's own nodes, as KubeRay does, watches it, and sends requests to it."""

import time
from typing import Final

import httpx

from bench.cluster.nodes import SERVE_PORT, Nodes, address
from bench.cluster.spread import Spread
from serve_app.config.server import AppConfig
from serve_app.kubernetes.rendering import serve_config

READY_WITHIN_S: Final = 180.0

APPLICATIONS: Final = "/api/serve/applications/"

REPLICA: Final = "ServeReplica:darkroom:demo"
"""In the title of a process with an engine."""


def deploy(cluster: Nodes, config: AppConfig) -> None:
    """Deploys the application, as KubeRay does."""
    cluster.ask("PUT", APPLICATIONS, json=serve_config(config)).raise_for_status()


def deploy_and_wait(cluster: Nodes, config: AppConfig, replicas: int) -> None:
    """Deploys, and waits until that many replicas serve. Raises TimeoutError."""
    deploy(cluster, config)
    deadline = time.monotonic() + READY_WITHIN_S
    while not is_whole(cluster, replicas):
        if time.monotonic() > deadline:
            raise TimeoutError("the application did not get ready; the nodes' logs say why")
        time.sleep(1.0)


def is_whole(cluster: Nodes, replicas: int) -> bool:
    """Says whether Serve reports the application running with that many replicas, and every node's proxy healthy."""
    try:
        said = cluster.ask("GET", APPLICATIONS).raise_for_status().json()
        application = said["applications"]["darkroom"]
        running = [each["state"] for each in application["deployments"]["demo"]["replicas"]]
    except (httpx.HTTPError, KeyError):
        return False
    proxies = [is_taking_requests(address(worker)) for worker in cluster.workers]
    return application["status"] == "RUNNING" and running == ["RUNNING"] * replicas and all(proxies)


def is_taking_requests(host: str) -> bool:
    """Says whether the node's proxy reaches an ingress. Its own health page answers only the node itself."""
    try:
        return httpx.get(f"http://{host}:{SERVE_PORT}/livez", timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def replicas_by_node(cluster: Nodes) -> dict[str, int]:
    """Returns the processes with an engine, by their node's address. Works without a head."""
    counts = {address(worker): len(cluster.processes_titled(worker, REPLICA)) for worker in cluster.workers}
    return {host: count for host, count in counts.items() if count}


def client_of(cluster: Nodes) -> httpx.AsyncClient:
    """Returns an HTTP client for the service, which spans all workers."""
    return httpx.AsyncClient(
        # Without keys it answers to no other name; where the request goes is the transport's choice.
        base_url=f"http://localhost:{SERVE_PORT}",
        transport=Spread(lambda: [address(worker) for worker in cluster.workers]),
        timeout=None,
    )
