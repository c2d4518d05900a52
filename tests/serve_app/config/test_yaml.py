"""Whatever is wrong with YAML that people have written is our error."""

import re
from pathlib import Path

import pytest

from serve_app.config.errors import ConfigError, parse_yaml
from serve_app.config.server import load_config
from serve_app.gateway.api_keys import parse_keys
from tests.serve_app.servers import ROOT

BROKEN = (
    "a: [",
    "a: 2024-13-45",
    "a: !!int ''",
    "a: !!bool x",
    "a: !!timestamp x",
    "a: !!python/name:os.x",
    "[" * 9999,
)


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:20])
def test_what_is_no_yaml_is_a_configuration_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / 'server.yaml'}: not valid YAML: ")):
        load_config(tmp_path / "server.yaml")
    with pytest.raises(ConfigError) as caught:
        parse_keys(text)
    assert str(caught.value) == "keys: not valid YAML"


def test_yaml_of_people_is_read_in_one_place() -> None:
    readers = [path for path in (ROOT / "serve_app").rglob("*.py") if "yaml.safe_load(" in path.read_text()]
    assert [path.name for path in readers] == ["errors.py"]
    assert parse_yaml("a: 1", "it") == {"a": 1}
