"""A1111's names of samplers and of the spacings of their noise levels, which it calls schedulers."""

from typing import Any, Final

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.sampler_names import CHECKPOINT, SAMPLERS, resolve_sampler

_KARRAS: Final = " Karras"

_AUTOMATIC: Final = ("", "automatic", "use same scheduler")
_UNIFORM: Final = ("uniform", "normal")

SCHEDULERS: Final = ("automatic", "uniform", "karras")

# What A1111 finds best for each sampler, where no spacing is named.
_KARRAS_BY_DEFAULT: Final = ("DPM++ 2M", "DPM++ SDE", "DPM2", "DPM2 a")

# Where A1111 finds the exponential spacing best, which is not here.
_EXPONENTIAL_BY_DEFAULT: Final = ("DPM++ 2M SDE", "DPM++ 3M SDE")

_BY_LABEL: Final = {row.label: row.name for row in SAMPLERS.values()}


def find_sampler(name: str, scheduler: str) -> str | None:
    """Returns our name of a sampler and its spacing; None, which is the model's own, if none is named.

    Raises InvalidParameter for names that mean nothing here, and for spacings that the sampler does not have.
    """
    spacing = scheduler.strip().lower()
    if spacing not in (*_AUTOMATIC, *_UNIFORM, "karras"):
        raise InvalidParameter("scheduler", f"must be one of {', '.join(SCHEDULERS)}")
    if not name.strip():
        if spacing not in _AUTOMATIC:
            raise InvalidParameter("sampler_name", "is required with a scheduler")
        return None
    found = resolve_sampler(name)
    label = CHECKPOINT if found == CHECKPOINT else SAMPLERS[found].label
    # Older clients name both in one.
    is_karras = label.endswith(_KARRAS)
    base = label.removesuffix(_KARRAS)
    if spacing in _AUTOMATIC and base in _EXPONENTIAL_BY_DEFAULT and not is_karras:
        there = " or ".join(["uniform", *(["karras"] if base + _KARRAS in _BY_LABEL else [])])
        rule = f"must be {there} for {base}: automatic means exponential, which this server does not have"
        raise InvalidParameter("scheduler", rule)
    if spacing == "karras" or (spacing in _AUTOMATIC and (is_karras or base in _KARRAS_BY_DEFAULT)):
        if base + _KARRAS not in _BY_LABEL:
            raise InvalidParameter("scheduler", f"{base} is not there with karras; ask for uniform")
        return _BY_LABEL[base + _KARRAS]
    return _BY_LABEL.get(base, found)


def split_label(sampler: str) -> tuple[str, str]:
    """Returns the names of `sampler`, one of ours, and of its spacing."""
    if sampler == CHECKPOINT:
        return CHECKPOINT.capitalize(), "Automatic"
    label = SAMPLERS[sampler].label
    return label.removesuffix(_KARRAS), "Karras" if label.endswith(_KARRAS) else "Uniform"


def list_samplers() -> list[dict[str, Any]]:
    """Returns the samplers as A1111 lists them: each once, whatever its spacings."""
    rows = [row for row in SAMPLERS.values() if not row.label.endswith(_KARRAS)]
    return [{"name": row.label, "aliases": [row.name, *row.aliases], "options": {}} for row in rows]


def list_schedulers() -> list[dict[str, Any]]:
    """Returns the spacings of noise levels as A1111 lists them."""
    return [
        {"name": name, "label": name.capitalize(), "aliases": None, "default_rho": -1, "need_inner_model": False}
        for name in SCHEDULERS
    ]
