"""The units of A1111's ControlNet extension that are IP-Adapters, as reference images."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.settings import MAX_REFERENCES, ReferenceSettings
from serve_app.labels.parameters_text import IP_ADAPTER_MODULE

if TYPE_CHECKING:
    from serve_app.api.a1111.units import UnitFields

MODULES: Final = (IP_ADAPTER_MODULE,)
"""What units may name as their `module`; the adapter says itself which encoder looks at the picture."""

_MARK: Final = re.compile(r"ip[-_]?adapter", re.IGNORECASE)
_WORD: Final = re.compile(r"[a-z0-9]+")

# What files' names say besides which adapter they are: the models and the encoders that they fit.
_EVERYWHERE: Final = frozenset(
    ("ip", "adapter", "ipadapter", "auto", "clip", "sd15", "sd21", "sdxl", "vit", "h", "g", "bigg")
)
_FACES: Final = frozenset(("face", "faceid", "portrait"))


def is_reference(unit: "UnitFields", adapters: Sequence[str]) -> bool:
    """Whether the unit's module or model is an IP-Adapter: by A1111's names, or by those of `adapters`."""
    return any(_MARK.search(name) or _exact(name, adapters) for name in (unit.module, unit.model))


def reference_of(units: Sequence["UnitFields"], adapters: Sequence[str], field: str) -> ReferenceSettings:
    """Returns what the units' pictures do, by one of `adapters`. Raises InvalidParameter, which names `field`.

    The weight of one is its scale; where they differ they weigh the pictures among each other.
    """
    if len(units) > MAX_REFERENCES:
        raise InvalidParameter(field, f"may have at most {MAX_REFERENCES} units for IP-Adapters")
    named = {_adapter_of(unit, adapters, field) for unit in units}
    ranges = {(unit.guidance_start, unit.guidance_end) for unit in units}
    if len(named) > 1 or len(ranges) > 1:
        raise InvalidParameter(field, "must have one model, guidance_start and guidance_end for all IP-Adapter units")
    ((start, end),) = ranges
    weights = tuple(unit.weight for unit in units)
    same = len(set(weights)) == 1
    try:
        return ReferenceSettings(
            adapter=named.pop(),
            scale=weights[0] if same else 1.0,
            start=start,
            end=end,
            weights=() if same else weights,
        )
    except ValidationError:
        raise InvalidParameter(field, "must have a guidance_start below its guidance_end") from None


def adapter_of(name: str, adapters: Sequence[str]) -> str | None:
    """Returns the adapter that A1111's name of a model stands for; None leaves it to our model, which may have one.

    Raises ValueError, which states the rule, for one that looks at faces where no adapter does.
    """
    if exact := _exact(name, adapters):
        return exact
    asked = _words_of(name)
    fitting = [each for each in adapters if _words_of(each) == asked]
    if len(fitting) == 1:
        return fitting[0]
    if asked & _FACES:
        raise ValueError(f"names an IP-Adapter for faces that this model does not have; it has: {', '.join(adapters)}")
    return None


def _adapter_of(unit: "UnitFields", adapters: Sequence[str], field: str) -> str | None:
    is_named = unit.model.strip().casefold() not in ("", "none")
    try:
        return adapter_of(unit.model if is_named else unit.module, adapters)
    except ValueError as error:
        raise InvalidParameter(field, str(error)) from None


def _exact(name: str, adapters: Iterable[str]) -> str | None:
    asked = name.strip().casefold().partition(" [")[0]
    return next((each for each in adapters if each.casefold() == asked), None)


def _words_of(name: str) -> frozenset[str]:
    """The words of a name that tell one adapter from another."""
    return frozenset(_WORD.findall(name.casefold().partition(" [")[0])) - _EVERYWHERE
