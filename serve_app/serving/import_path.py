"""Restricts the imports of a server's processes to what is installed: never the folder that it was started in."""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

SAFE_PATH: Final[Mapping[str, str]] = MappingProxyType({"PYTHONSAFEPATH": "1"})
"""As `python -P`, for all child processes: neither the current folder nor a script's own is on their path."""


def restrict_to_installed(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns `environment` for such a process, with PYTHONPATH's relative paths dropped: "" is the current folder."""
    folders = environment.get("PYTHONPATH", "").split(os.pathsep)
    whole = os.pathsep.join(folder for folder in folders if os.path.isabs(folder))
    return {**environment, **SAFE_PATH, "PYTHONPATH": whole}
