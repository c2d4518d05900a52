"""What networks on OpenVINO have in common: functions that are converted, and torch's network where LoRAs change it."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from deployments.engine.lora.rows.factors import Factors
from deployments.engine.lora.rows.layers import Layers, apply_factors, layers_of
from deployments.engine.openvino.compiler import Compiler
from deployments.engine.openvino.conversion import Function, Input
from deployments.engine.openvino.converted_network import ConvertedNetwork, Origin


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
        self, name: str, function: Function, inputs: Sequence[Input], owners: Iterable[nn.Module]
    ) -> ConvertedNetwork:
        """Adds a function of the network, to be converted; `owners` are the modules whose weights only it needs."""
        part = ConvertedNetwork(self._compiler, self._origin, name, function, inputs, owners)
        self._parts.append(part)
        return part


class ChangeableNetwork(OpenVinoNetwork):
    """A network whose layers LoRAs can change: torch runs the calls that they change, on weights loaded once more."""

    def __init__(self, compiler: Compiler, origin: Origin, network: nn.Module, load: Callable[[], nn.Module]) -> None:
        """`load` loads the torch network again, from any thread, when it is first needed."""
        super().__init__(compiler, origin, network)
        self._load, self._loading = load, threading.Lock()
        # In lists: what is a module's attribute becomes a part of it, while other threads may look at its parts.
        self._plain: list[nn.Module] = []
        self._changed: list[nn.Module] = []
        self.plain_bytes = 0
        """The bytes of the weights that were loaded once more."""

    @property
    def changed(self) -> Any:
        """The torch network while updates are applied to it, else None."""
        return self._changed[-1] if self._changed else None

    def weighted_layers(self) -> Layers:
        """Returns the layers that LoRAs can change, with their weights. From any thread; may take seconds."""
        return layers_of(self._load_plain())

    @contextmanager
    def apply_factors(self, factors: Mapping[str, Factors]) -> Iterator[None]:
        """Lets calls inside the context give the answers of the changed layers. For one thread at a time."""
        plain = self._load_plain()
        with apply_factors(plain, factors):
            self._changed.append(plain)
            try:
                yield
            finally:
                self._changed.pop()

    def _load_plain(self) -> nn.Module:
        with self._loading:
            if not self._plain:
                self._plain.append(self._load())
                self.plain_bytes = sum(weight.nbytes for weight in self._plain[0].parameters())
            return self._plain[0]
