"""A LoRA in memory, whatever its file's format."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor, nn

from deployments.engine.lora.layer_names import flat_names
from deployments.engine.lora.layer_update import LayerUpdate
from deployments.engine.protocol.errors import InvalidParameter

_READS_TEXT: Final = ".attn2.to_k"


class LayerChange(ABC):
    """What a file holds for one layer."""

    @abstractmethod
    def check(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Raises ValueError, which tells both shapes, if `layer` has another one. Computes nothing."""

    @abstractmethod
    def update(self, layer: nn.Linear | nn.Conv2d, scale: float) -> LayerUpdate:
        """Returns the update of a checked `layer` at `scale`."""

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
    token, [vectors, width]. `text_width` is that of the text that its base reads, if its file says so.
    """

    name: str
    digest: str
    layers: Mapping[str, Mapping[str, LayerChange]]
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    text_width: int | None = None

    @property
    def size(self) -> int:
        """Its bytes in memory."""
        changes = (change for network in self.layers.values() for change in network.values())
        return sum(change.size for change in changes) + sum(each.nbytes for each in self.embeddings.values())

    def check(self, networks: Mapping[str, Mapping[str, nn.Module]]) -> None:
        """Raises InvalidParameter, which names the layer, if the adapter is made for another base than `networks`.

        They are all that the base has, each with its Linear and Conv2d layers as `updates` takes them.
        """
        for network in self.layers:
            if network not in networks:
                raise self._misfit(f"changes its {network}, which the model does not have")
        for network, modules in networks.items():
            self._find_layers(network, modules)

    def updates(self, network: str, modules: Mapping[str, nn.Module], scale: float) -> dict[str, LayerUpdate]:
        """Returns the updates of `network` at `scale`, by the layer's path; none at 0.

        `modules` has the base's Linear and Conv2d layers by their path in diffusers or transformers. An adapter that
        does not change the network has no updates.

        Raises InvalidParameter, which names the layer, if the adapter is made for another base.
        """
        if scale == 0:
            return {}
        found = self._find_layers(network, modules)
        return {path: change.update(layer, scale) for path, (layer, change) in found.items()}

    def _find_layers(
        self, network: str, modules: Mapping[str, nn.Module]
    ) -> dict[str, tuple[nn.Linear | nn.Conv2d, LayerChange]]:
        """Returns the layers that it changes by their paths, each checked, with the change."""
        if network == "unet":
            self._check_text_width(modules)
        changes = self.layers.get(network, {})
        paths = flat_names(network, modules) if changes else {}
        found: dict[str, tuple[nn.Linear | nn.Conv2d, LayerChange]] = {}
        for name, change in changes.items():
            layer = modules.get(paths.get(name, ""))
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                raise self._misfit(f"changes {name!r} in the {network}, which the model does not have")
            if paths[name] in found:
                raise self._misfit(f"changes {paths[name]!r} under two names")
            try:
                change.check(layer)
            except ValueError as error:
                raise self._misfit(f"changes {paths[name]!r} in the {network}, {error}") from None
            found[paths[name]] = layer, change
        return found

    def _check_text_width(self, modules: Mapping[str, nn.Module]) -> None:
        for path, layer in modules.items():
            if path.endswith(_READS_TEXT) and isinstance(layer, nn.Linear):
                if self.text_width is not None and layer.in_features != self.text_width:
                    raise self._misfit(f"reads text {self.text_width} wide, and the model {layer.in_features}")
                return

    def _misfit(self, what: str) -> InvalidParameter:
        return InvalidParameter("loras", f"the LoRA {self.name!r} is not made for this model: it {what}")
