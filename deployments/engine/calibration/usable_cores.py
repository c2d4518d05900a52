"""Counts the cores that this process may use: those it is bound to, and no more than its container's share of time."""

import math
import os
from pathlib import Path
from typing import Final

CGROUP: Final = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Returns how many cores this process may keep busy, at least 1. A share of 2.5 cores counts as 3.

    `cgroup` is where the process's control group is mounted, in version 2 or 1: in a container it is the container's.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _share(cgroup)
    return bound if share is None else max(1, min(bound, math.ceil(share)))


def _share(cgroup: Path) -> float | None:
    """Returns the cores' worth of time that the group may use, None for no bound."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / f"cpu/cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if quota == "max" or float(quota) <= 0 else float(quota) / float(period)
    except (OSError, ValueError):
        return None
