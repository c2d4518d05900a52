"""Checkpoints of a training run: one file, replaced atomically, so that a kill costs minutes, not the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save(path: Path, **state: Any) -> None:
    """Write `state` (state dicts and numbers) to `path` through a neighbour and a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_suffix(".partial")
    torch.save(state, neighbour)
    os.replace(neighbour, path)


def load(path: Path) -> dict[str, Any] | None:
    """The state last saved at `path`, on the CPU; None when there is none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
