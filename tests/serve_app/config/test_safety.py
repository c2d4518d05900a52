"""The sections of the configuration about safety: which model is checked by what."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.safety import CheckerSpec
from deployments.source_checks import check_source
from serve_app.config.errors import ConfigError
from serve_app.config.server import AppConfig, load_config
from serve_app.generation.blocklist import BlockRule

OWN: dict[str, Any] = {"policy": "required", "checkers": [{"name": "nsfw"}]}
LOGO: dict[str, Any] = {"policy": "report", "checkers": [{"name": "logo", "class_path": "a.b:C", "settings": {"x": 1}}]}


def config(**sections: Any) -> AppConfig:
    return AppConfig.model_validate({"deployments": [{"name": "d", "models": ["sd15", "sd21"]}], **sections})


def policies(built: AppConfig) -> dict[str, str]:
    return {spec.name: spec.safety.policy for spec in built.specs_of(built.deployments[0])}


def test_nothing_is_checked_unless_the_configuration_says_so() -> None:
    assert policies(config()) == {"sd15": "off", "sd21": "off"}


def test_one_section_is_for_all_models_and_a_models_own_goes_before() -> None:
    assert policies(config(safety=OWN)) == {"sd15": "required", "sd21": "required"}
    assert policies(config(safety=OWN, models=[{"name": "sd21", "safety": LOGO}])) == {
        "sd15": "required",
        "sd21": "report",
    }
    off = {"name": "sd21", "safety": {"policy": "off"}}
    assert policies(config(safety=OWN, models=[off])) == {"sd15": "required", "sd21": "off"}


def test_a_class_and_its_settings_reach_the_specification() -> None:
    (spec, _) = config(safety=LOGO).specs_of(config().deployments[0])
    assert spec.safety.checkers == (CheckerSpec("logo", class_path="a.b:C", settings={"x": 1}),)
    assert spec.safety.checkers[0].settings == {"x": 1}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"policy": "required"}, "at least one checker"),
        ({"policy": "always", "checkers": [{"name": "a"}]}, "policy"),
        ({"policy": "report", "checkers": [{"name": "a"}, {"name": "a"}]}, "a name of its own"),
        ({"policy": "report", "checkers": [{"name": "a", "class_path": "nothing"}]}, "class_path"),
        ({"policy": "report", "checkers": [{"name": "a", "class_path": "a:B", "source": "c"}]}, "exclude"),
        ({"policy": "report", "checkers": [{"name": "a", "settings": {"b": 1}}]}, "are for a class"),
        ({"policy": "report", "checkers": [{"name": "a", "revision": "b"}]}, "belongs to a `source`"),
        ({"policy": "report", "checkers": [{"name": "a"}], "timeout_s": 0}, "timeout_s"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_place(tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    path = tmp_path / "darkroom.yaml"
    path.write_text(yaml.safe_dump({"extends": "demo", "safety": wrong}))
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(path)
    assert "safety" in str(caught.value)


def test_a_source_without_a_commit_is_refused_before_anything_starts() -> None:
    loose = {"policy": "required", "checkers": [{"name": "nsfw", "source": "someone/checker"}]}
    (spec, _) = config(safety=loose).specs_of(config().deployments[0])
    with pytest.raises(ModelLoadError, match="safety checker 'nsfw': pin the checker's `revision`"):
        check_source(spec)


def test_a_rule_has_its_words_here_and_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# not this\nsecret word\n\n  other \n")
    rule = {"name": "r", "words": ["here"], "words_from": {"file": str(path)}, "patterns": ["a+b"]}
    (built,) = config(blocklist=[rule]).blocklist
    assert built.rule() == BlockRule("r", ("here", "secret word", "other"), ("a+b",))
    path.unlink()
    with pytest.raises(ConfigError, match=r"blocklist: r: words_from: the file .* cannot be read"):
        built.rule()


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([{"name": "a"}], "give `words`, `words_from` or `patterns`"),
        ([{"name": "a", "patterns": ["a", "(b"]}], "pattern 1 is no pattern of RE2"),
        ([{"name": "a", "patterns": ["a|"]}], "pattern 0 matches every text"),
        ([{"name": "a", "words": ["b"]}, {"name": "a", "words": ["c"]}], "the name 'a' is taken"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rules: list[Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        config(blocklist=rules)
