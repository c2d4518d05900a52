"""Checks a network's config.json, key by key; errors name the key. The rows are in `config_keys.py`."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from deployments.engine.protocol.errors import ModelLoadError

_SHOWN: Final = 60
# Union ControlNets are older than diffusers' class for them: a row says that it is one, and its weights show it.
_OTHER_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "ControlNetUnionModel": ("ControlNetModel", "ControlNetModel_Union"),
}


@dataclass(frozen=True, slots=True)
class ConfigRule:
    """A rule for one key: `fits` decides, `served` says for people which values are served, `why` why others are
    refused.
    """

    served: str
    fits: Callable[[Any], bool]
    why: str = ""


ConfigRules = Mapping[str, ConfigRule]
"""Rules by the key of the config."""


def anything(how: str = "any") -> ConfigRule:
    """Allows every value: diffusers' or transformers' own class handles it, or the pipelines ignore it."""
    return ConfigRule(how, lambda _: True)


def only(*values: Any, why: str) -> ConfigRule:
    """Allows one of `values`."""
    return ConfigRule(" or ".join(f"`{json.dumps(value)}`" for value in values), lambda value: value in values, why)


def each_of(*values: Any, why: str) -> ConfigRule:
    """Allows a list of `values`."""
    return ConfigRule(
        "a list of " + ", ".join(f"`{value}`" for value in values),
        lambda value: isinstance(value, list | tuple) and all(each in values for each in value),
        why,
    )


def check_config(title: str, config: Mapping[str, Any], rules: ConfigRules) -> None:
    """Raises ModelLoadError, which begins with `title` and names the first key of `config` that is not served."""
    for key, rule in rules.items():
        if key in config and not rule.fits(config[key]):
            said = json.dumps(config[key])
            said = said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."
            raise ModelLoadError(
                f"{title}: `{key}` is {said} in its config.json, and served is {rule.served}: {rule.why}"
            )


def check_class(title: str, config: Mapping[str, Any], kind: str) -> None:
    """Raises ModelLoadError if `config` is that of another class than `kind`, in diffusers' terms or transformers'.

    Either library would load it as what it is asked to, and leave out what it does not know.
    """
    named = config.get("_class_name")
    classes = [named] if named is not None else config.get("architectures") or [kind]
    if not {kind, *_OTHER_NAMES.get(kind, ())}.intersection(classes):
        raise ModelLoadError(
            f"{title} is a {classes[0]} by its config.json, and served is a {kind}; bring one of those"
        )
