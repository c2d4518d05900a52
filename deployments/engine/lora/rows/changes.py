"""Tells kinds of updates apart, for what is compiled for one kind of them."""

from collections.abc import Mapping
from typing import Final, Literal

from deployments.engine.lora.layer_update import LayerUpdate
from deployments.engine.lora.rows.factors import Factors

Changes = Literal["none", "attention", "attention with gains", "all", "all with gains"]
"""What a call's updates change: layers of attention blocks, as most LoRAs do, or all; and whether some have gains."""

_ATTENTION: Final = ".attentions."


def changes_of(updates: Mapping[str, LayerUpdate] | Mapping[str, Factors]) -> Changes:
    """Returns what `updates`, by the layers' paths, change."""
    if not updates:
        return "none"
    has_gains = any(each.gain is not None for each in updates.values())
    if all(map(in_attention, updates)):
        return "attention with gains" if has_gains else "attention"
    return "all with gains" if has_gains else "all"


def join_changes(first: Changes, second: Changes) -> Changes:
    """Returns what a call changes in which some rows' updates are of the one kind, and some of the other."""
    kinds = [each for each in (first, second) if each != "none"]
    if not kinds:
        return "none"
    has_gains = any(each.endswith("gains") for each in kinds)
    if any(each.startswith("all") for each in kinds):
        return "all with gains" if has_gains else "all"
    return "attention with gains" if has_gains else "attention"


def in_attention(path: str) -> bool:
    """Returns True for a layer of a UNet's attention blocks."""
    return _ATTENTION in path
