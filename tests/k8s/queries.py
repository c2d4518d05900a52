"""What dashboard and rules ask Prometheus for."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from serve_app.kubernetes.dashboard import PANELS

FOLDER: Final = Path(__file__).parents[2] / "k8s" / "observability"


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules.yaml").read_text())["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


QUERIES: Final = [query for panel in PANELS for _, query in panel.queries] + [rule["expr"] for rule in rules()]


def used(query: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The metrics of a query, and what it asks of their labels."""
    for name, matchers in re.findall(r"\b(ray_\w+)(?:\{([^}]*)\})?", query):
        yield name, dict(re.findall(r'(\w+)(?:=|!=|=~|!~)"([^"]*)"', matchers))
