"""Checkpoints of a training run: one file, replaced atomically, so that a kill costs minutes, not the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from deployments.whole_files import replaced


def save(path: Path, **state: Any) -> None:
    """Write `state` (state dicts and numbers) to `path` whole, so that nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as neighbour:
        torch.save(state, neighbour)


def load(path: Path) -> dict[str, Any] | None:
    """The state last saved at `path`, on the CPU; None when there is none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
