"""Configurations in the pages are ones that a server takes, and the page about them leaves no section out."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config.server import AppConfig, load_config, packaged_configs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGE = (ROOT / "docs" / "configuration.md").read_text()
NO_COMMIT = "<40 hexadecimal digits>"


def configurations() -> list[tuple[str, dict[str, Any]]]:
    """Every block of YAML with sections of a configuration, and the page it is on."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            document = yaml.safe_load(block.replace(NO_COMMIT, "a" * 40))
            if isinstance(document, dict) and document.keys() & {*AppConfig.model_fields, "extends"}:
                found.append((str(page.relative_to(ROOT)), document))
    return found


@pytest.mark.parametrize(
    ("page", "document"), configurations(), ids=[f"{page}: {', '.join(each)}" for page, each in configurations()]
)
def test_a_configuration_in_a_page_loads(page: str, document: dict[str, Any], tmp_path: Path) -> None:
    """A fragment adds to the demo's, and to a folder of LoRAs, which trainings need."""
    if not document.keys() & {"deployments", "extends"}:
        document = {"extends": "demo", "loras": {"folder": "/loras"}} | document
    (tmp_path / "server.yaml").write_text(yaml.safe_dump(document))
    load_config(tmp_path / "server.yaml")


def test_configurations_are_found() -> None:
    assert len(configurations()) > 20


def test_the_page_names_every_section_once() -> None:
    rows = re.findall(r"^\| (.+?) \|", PAGE.split("## Sections")[1], re.MULTILINE)[1:]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(AppConfig.model_fields)


def test_the_page_names_every_packaged_configuration() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.split("## A file of your own")[0], re.MULTILINE)
    assert sorted(rows) == packaged_configs()
