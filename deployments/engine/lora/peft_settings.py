"""Reads peft's settings from a LoRA file's header, where diffusers keeps them. No torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Any, Final

_KEY: Final = "lora_adapter_metadata"
# Patterns are regular expressions; these are plain names, and a stranger's expression may take for ever.
_NAME: Final = re.compile(r"^\^?([\w.]+)\$?$")
_CHANGES_MORE: Final = ("lora_bias", "fan_in_fan_out", "layer_replication", "use_qalora", "alora_invocation_tokens")


@dataclass(frozen=True, slots=True)
class PeftSettings:
    """peft's `lora_alpha`, which `alphas` replace for some layers; with `rank_stabilised` it is divided by the rank's
    root (Kalajdzievski 2023).
    """

    alpha: float
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    def alpha_of(self, layer: str, rank: int) -> float:
        """Returns the alpha of a layer, by its path, that is to be divided by its rank."""
        own = next((alpha for name, alpha in self.alphas.items() if layer == name or layer.endswith(f".{name}")), None)
        alpha = self.alpha if own is None else own
        return alpha * sqrt(rank) if self.rank_stabilised else alpha


def read_peft_settings(metadata: Mapping[str, str]) -> dict[str, PeftSettings]:
    """Returns the settings by network; none if the file does not say any, and every alpha is its rank.

    Raises ValueError if they cannot be understood, or ask for more than a LoRA.
    """
    if _KEY not in metadata:
        return {}
    try:
        found: dict[str, dict[str, Any]] = {}
        for key, value in json.loads(metadata[_KEY]).items():
            network, _, setting = key.partition(".")
            found.setdefault(network, {})[setting] = value
        return {network: _read(settings) for network, settings in found.items()}
    except (TypeError, AttributeError, LookupError, RecursionError, ValueError) as error:
        raise ValueError(f"its header's {_KEY!r} cannot be understood ({error})") from None


def _read(settings: Mapping[str, Any]) -> PeftSettings:
    for name in _CHANGES_MORE:
        if settings.get(name):
            raise ValueError(f"{name!r} cannot be applied row by row")
    alphas = {}
    for pattern, alpha in (settings.get("alpha_pattern") or {}).items():
        if (plain := _NAME.match(pattern)) is None:
            raise ValueError("a pattern is no layer's name")
        alphas[plain[1]] = _number(alpha)
    return PeftSettings(_number(settings["lora_alpha"]), alphas, bool(settings.get("use_rslora")))


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or not isfinite(value):
        raise ValueError("an alpha is no number")
    return float(value)
