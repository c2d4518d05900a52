"""The `loras` section is checked where the server starts, and names what is wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config.errors import ConfigError
from serve_app.config.server import load_config

COMMIT = "0123456789" * 4


def load(tmp_path: Path, loras: Any) -> Any:
    (tmp_path / "server.yaml").write_text(yaml.safe_dump({"extends": "demo", "loras": loras}))
    return load_config(tmp_path / "server.yaml")


def test_rows_and_a_folder_become_a_catalogue(tmp_path: Path) -> None:
    named = [
        {"name": "coffee", "source": str(tmp_path / "x.safetensors"), "models": ["sd15"]},
        {"name": "lcm", "source": "maker/lcm", "revision": COMMIT, "file": "lcm.safetensors"},
    ]
    config = load(tmp_path, {"folder": str(tmp_path / "folder"), "named": named})
    rows = [entry.spec for entry in config.loras.catalogue().entries()]
    assert [(row.name, row.revision, row.file, row.models) for row in rows] == [
        ("coffee", None, "", ("sd15",)),
        ("lcm", COMMIT, "lcm.safetensors", ()),
    ]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"name": "a/b", "source": "/x.safetensors"}, "not a path"),
        ({"name": "x", "source": "/x.ckpt"}, "safetensors files only"),
        ({"name": "x", "source": "maker/x", "revision": COMMIT}, "safetensors files only"),
        ({"name": "x", "source": "maker/x", "file": "x.safetensors"}, "a commit of 40 digits"),
        ({"name": "x", "source": "maker/x", "file": "x.safetensors", "revision": "main"}, "a commit of 40 digits"),
        ({"name": "x", "source": "/x.safetensors", "revision": COMMIT}, "repositories on the hub"),
        ({"name": "x", "source": "/x.safetensors", "models": ["sd16"]}, "not hosted"),
        ({"name": "x", "source": "/x.safetensors", "model": "sd15"}, "unknown key"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(row: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=what):
        load(tmp_path, {"named": [row]})


def test_a_name_stands_for_one_lora(tmp_path: Path) -> None:
    row = {"name": "x", "source": "/x.safetensors"}
    with pytest.raises(ConfigError, match="is taken"):
        load(tmp_path, {"named": [row, row]})
