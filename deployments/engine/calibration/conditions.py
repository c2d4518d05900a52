"""Describes the conditions under which measurements and verdicts hold: machine, settings, versions. No torch."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from deployments.engine.calibration.usable_cores import usable_cores
from deployments.engine.protocol.engine_config import EngineConfig
from deployments.engine.protocol.numerics import NUMERICS_VERSION

FIGURES_VERSION: Final = 1
"""Raise it with any change after which older measurements mislead: how calls are made, timed or metered."""

# These change neither how long a call takes nor what memory it needs.
_IRRELEVANT: Final = ("queue_limit", "model_memory_bytes", "cache_dir")


def versions() -> dict[str, Any]:
    """Returns the versions that decide what samplers and calls do."""
    libraries = {name: version(name) for name in ("torch", "diffusers")}
    return {"figures": FIGURES_VERSION, "numerics": NUMERICS_VERSION, **libraries}


def machine() -> dict[str, Any]:
    """Describes the processor, and how much of it this process may use."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable": usable_cores(),
    }


def settings(config: EngineConfig) -> dict[str, Any]:
    """Returns the settings that decide what a call costs."""
    return {name: value for name, value in config.options.items() if name not in _IRRELEVANT}


def digest(described: Mapping[str, Any]) -> str:
    """Returns a digest of a description, such as the configs of a model's networks."""
    return hashlib.sha256(json.dumps(dict(described), sort_keys=True, default=str).encode()).hexdigest()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
