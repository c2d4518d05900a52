"""A LoRA in memory, whatever its file's format."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from deployments.engine.lora.layer_names import flat_names
from deployments.engine.lora.layer_update import LayerUpdate
from deployments.engine.protocol.errors import InvalidParameter


class LayerChange(ABC):
    """What a file holds for one layer."""

    @abstractmethod
    def update(self, layer: nn.Linear | nn.Conv2d, scale: float) -> LayerUpdate:
        """Returns the update of `layer` at `scale`. Raises ValueError, which tells both shapes, if it does not fit."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Its bytes in memory."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA, read and checked.

    `name` is the registry's, and `digest` the SHA-256 of the file in hexadecimal: it identifies the weights in
    fingerprints and in the keys of caches. `layers` holds, by network (`unet`, `text_encoder`), the changes by the
    layer's name with underscores for dots. `embeddings` are the textual inversions that the file brings along: by
    token, [vectors, width].
    """

    name: str
    digest: str
    layers: Mapping[str, Mapping[str, LayerChange]]
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Its bytes in memory."""
        changes = (change for network in self.layers.values() for change in network.values())
        return sum(change.size for change in changes) + sum(each.nbytes for each in self.embeddings.values())

    def updates(self, network: str, modules: Mapping[str, nn.Module], scale: float) -> dict[str, LayerUpdate]:
        """Returns the updates of `network` at `scale`, by the layer's path.

        `modules` has the base's Linear and Conv2d layers by their path in diffusers or transformers. An adapter that
        does not change the network has no updates.

        Raises InvalidParameter, which names the layer, if the adapter is made for another base.
        """
        changes = self.layers.get(network, {})
        paths = flat_names(network, modules) if changes else {}
        return {paths[name]: self._update(name, paths, modules, change, scale) for name, change in changes.items()}

    def _update(
        self,
        name: str,
        paths: Mapping[str, str],
        modules: Mapping[str, nn.Module],
        change: LayerChange,
        scale: float,
    ) -> LayerUpdate:
        layer = modules.get(paths.get(name, ""))
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise self._misfit(f"changes {name!r}, which the model does not have")
        try:
            return change.update(layer, scale)
        except ValueError as error:
            raise self._misfit(f"changes {paths[name]!r}, {error}") from None

    def _misfit(self, what: str) -> InvalidParameter:
        return InvalidParameter("loras", f"the LoRA {self.name!r} is not made for this model: it {what}")
