"""What networks on OpenVINO have in common: functions that are converted, and layers that LoRAs can change."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from torch import nn

from deployments.engine.lora.rows.factors import Factors
from deployments.engine.lora.rows.layers import Layers, layers_of
from deployments.engine.openvino.compiler import Compiler
from deployments.engine.openvino.conversion import Function, Input
from deployments.engine.openvino.converted_network import ConvertedNetwork, Origin
from deployments.engine.openvino.referring_model import NO_ATTENTION, AttentionLayers


class OpenVinoNetwork(nn.Module):
    """A network whose functions run through OpenVINO. Its own weights are dropped when they are converted."""

    def __init__(self, compiler: Compiler, origin: Origin, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._compiler, self._origin = compiler, origin
        self._parts: list[ConvertedNetwork] = []

    @property
    def config(self) -> Any:
        """The network's config."""
        return self.network.config

    @property
    def backend(self) -> str:
        """What runs it: openvino, or torch if one of its functions could not be converted."""
        return "torch" if any(part.has_failed for part in self._parts) else "openvino"

    @contextmanager
    def exact_calls(self) -> Iterator[None]:
        """Lets calls inside the context wait for the programs of their own shapes. For one thread at a time."""
        for part in self._parts:
            part.is_exact = True
        try:
            yield
        finally:
            for part in self._parts:
                part.is_exact = False

    def add_part(
        self,
        name: str,
        function: Function,
        inputs: Sequence[Input],
        owners: Iterable[nn.Module],
        layers: Layers = MappingProxyType({}),
        attention: AttentionLayers = NO_ATTENTION,
    ) -> ConvertedNetwork:
        """Adds a function of the network, to be converted; `owners` are the modules whose weights only it needs,
        `layers` those of its layers that LoRAs can change, and `attention` those that can be given references.
        """
        of_network = (self.network, layers, attention)
        part = ConvertedNetwork(self._compiler, self._origin, name, function, inputs, owners, *of_network)
        self._parts.append(part)
        return part


class ChangeableNetwork(OpenVinoNetwork):
    """A network whose layers LoRAs can change."""

    def __init__(self, compiler: Compiler, origin: Origin, network: nn.Module) -> None:
        super().__init__(compiler, origin, network)
        self.changeable = {path: layer for path, layer in layers_of(network).items() if _is_in_place(network, path)}
        """The layers that LoRAs change when it is called, by their paths; torch drops their weights."""
        self.factors: Mapping[str, Factors] = {}
        """What changes in calls now."""

    @property
    def changed_bytes(self) -> int:
        """The bytes of the weights that are in memory once more for calls that LoRAs change."""
        return sum(part.changed_bytes for part in self._parts)

    def weighted_layers(self) -> Layers:
        """Returns all layers that LoRAs can change, with their weights. From any thread; may take seconds."""
        whole = self._parts[0]
        return {**layers_of(self.network), **whole.weighted_layers()}

    @contextmanager
    def apply_factors(self, factors: Mapping[str, Factors]) -> Iterator[None]:
        """Lets calls inside the context give the answers of the changed layers. For one thread at a time."""
        self.factors = factors
        try:
            yield
        finally:
            self.factors = {}


def _is_in_place(network: nn.Module, path: str) -> bool:
    """Returns False for a projection that `CrossAttentionCache` has taken out."""
    return isinstance(network.get_submodule(path), nn.Linear | nn.Conv2d)
