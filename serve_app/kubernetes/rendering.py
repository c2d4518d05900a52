"""Renders the application's part of the manifests from the configuration that it uses everywhere.

An overlay is a kustomize folder. Its `darkroom.yaml` is the configuration, as `darkroom serve` takes it; from that
`serve-config.yaml` is rendered, a patch that puts `serveConfigV2` into the RayService. What Ray reads from its nodes'
environment goes into `node-environment.yaml` of the base.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from serve_app.config.server import AppConfig, load_config
from serve_app.kubernetes.dashboard import render_dashboard
from serve_app.launch.local_cluster import APP_NAME
from serve_app.serving.node_environment import NODE_ENVIRONMENT

CONFIGURATION: Final = "darkroom.yaml"
SERVE_CONFIG: Final = "serve-config.yaml"
NODES: Final = "node-environment.yaml"
DASHBOARD: Final = "dashboard.json"
IMPORT_PATH: Final = "serve_app.app:build_app"
PORT: Final = 8000

_HEAD: Final = "# Rendered by `darkroom k8s render` from {source}; change that.\n"


def render_files(root: Path) -> Iterator[tuple[Path, str]]:
    """Yields every rendered file below `root`, the folder of `base` and `overlays`, with its content.

    Raises ConfigError if an overlay's configuration is wrong.
    """
    yield root / "base" / NODES, node_environment()
    yield root / "observability" / DASHBOARD, render_dashboard()
    for file in sorted((root / "overlays").glob(f"*/{CONFIGURATION}")):
        yield file.with_name(SERVE_CONFIG), serve_config_patch(load_config(str(file)))


def serve_config(config: AppConfig) -> dict[str, Any]:
    """Converts `config` to Ray Serve's. Every node has a proxy, because KubeRay asks each pod's for its health."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {
            "host": "0.0.0.0",
            "port": PORT,
            "request_timeout_s": config.ingress.request_timeout_s,
            "keep_alive_timeout_s": config.ingress.keep_alive_timeout_s,
        },
        "logging_config": config.logging.serve_options(),
        "applications": [
            {
                "name": APP_NAME,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": config.model_dump(mode="json", exclude_unset=True),
            }
        ],
    }


def serve_config_patch(config: AppConfig) -> str:
    """The kustomize patch with that configuration."""
    text = yaml.safe_dump(serve_config(config), sort_keys=False, width=110)
    indented = "".join(f"    {line}\n" for line in text.splitlines())
    return (
        _HEAD.format(source=CONFIGURATION)
        + "apiVersion: ray.io/v1\nkind: RayService\nmetadata:\n  name: darkroom\nspec:\n  serveConfigV2: |\n"
        + indented
    )


def node_environment() -> str:
    """The ConfigMap with the environment of all of Ray's pods."""
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "darkroom-nodes"},
        "data": {**NODE_ENVIRONMENT, "RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_ENCODING": "JSON"},
    }
    return _HEAD.format(source="serve_app/serving/node_environment.py") + yaml.safe_dump(manifest, sort_keys=False)
