"""Arranges LoRAs' factors as programs for changed calls take them, and keeps what steps take again."""

import weakref
from collections.abc import Mapping
from typing import Final

import openvino
from cachetools import LRUCache
from torch import nn

from deployments.engine.lora.rows.changes import Changes
from deployments.engine.lora.rows.factors import Factors
from deployments.engine.lora.rows.layers import Layers
from deployments.engine.openvino.changed_model import arrange_factors, has_gains, layers_changed, no_factors
from deployments.engine.openvino.program import share

KEPT_GROUPS: Final = 8
"""The numbers of groups for which it is kept what layers are given that nothing changes: some kilobytes each."""


class GivenFactors:
    """What programs of a network with these `layers` are given besides their inputs. For one thread at a time."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        # By what is stacked, as long as it is; by the number of groups for layers that nothing changes.
        self._changed: weakref.WeakKeyDictionary[Factors, _Given] = weakref.WeakKeyDictionary()
        self._unchanged: LRUCache[int, dict[str, _Given]] = LRUCache(KEPT_GROUPS)

    def arrange(self, factors: Mapping[str, Factors], changes: Changes) -> list[openvino.Tensor]:
        """Returns what a program for `changes` is given for `factors`, by layer."""
        if changes == "none":
            return []
        groups = len(next(iter(factors.values())).down)
        unchanged = self._unchanged.setdefault(groups, {})
        given: list[openvino.Tensor] = []
        for path, layer in layers_changed(self._layers, changes).items():
            each = factors.get(path)
            if each is None:
                found = unchanged.get(path) or unchanged.setdefault(path, _Given(no_factors(layer, groups), layer))
            else:
                found = self._changed.get(each) or self._changed.setdefault(each, _Given(each, layer))
            given += found.tensors[: 3 if has_gains(changes) else 2]
        return given


class _Given:
    """The factors of one layer as programs take them, with gains last; what they share memory with is kept."""

    def __init__(self, factors: Factors, layer: nn.Linear | nn.Conv2d) -> None:
        self._arranged = arrange_factors(factors, layer)
        self.tensors = [share(each) for each in self._arranged]
