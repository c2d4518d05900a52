"""Lets LoRAs change a loaded model: what they can change in it, and calls of its UNet that are changed.

And counts what requests have brought into memory beside the models.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from deployments.engine.cuda.compiled_calls import CompilableNetwork
from deployments.engine.lora.rows.adapter_cache import AdapterCache
from deployments.engine.lora.rows.factors import Factors
from deployments.engine.lora.rows.layers import apply_factors, layers_of
from deployments.engine.lora.rows.lora_set import AdaptedBase
from deployments.engine.models.components import size_of
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.stack_size import Adapted


def adapted_base(model: LoadedModel) -> AdaptedBase:
    """Returns what LoRAs change in `model`. From any thread; it may have to wait until a network is converted."""
    return AdaptedBase(
        layers_of(model.unet),
        layers_of(model.prompt_encoder.text_encoders[0]),
        model.attention_cache.paths,
        model.device,
        model.dtype,
        *(layers_of(network) for network in model.prompt_encoder.text_encoders[1:]),
    )


def changes_apart(model: LoadedModel) -> bool:
    """Returns True if something else than usual runs the calls that LoRAs change, of all their rows."""
    return hasattr(model.unet, "changed_bytes")


class KeptAdapters:
    """What requests have brought into memory beside `models`. All methods may be called from any thread.

    `prepared` are the requests that use it, by their ids, and `prepared_bytes` what is held for those of them that have
    no row yet.
    """

    def __init__(
        self,
        adapters: AdapterCache,
        models: Mapping[str, LoadedModel],
        prepared: Mapping[str, Adapted],
        prepared_bytes: Callable[[], int],
    ) -> None:
        self._adapters, self._models = adapters, models
        self._prepared, self._prepared_bytes = prepared, prepared_bytes

    def count_bytes(self) -> int:
        """Returns the bytes of all LoRAs and IP-Adapters, of the weights that are in memory once more for them, and of
        what is prepared and has no row yet.
        """
        # The dictionary is copied in one operation.
        held = list(self._models.values())
        networks = {network for model in held for network in model.networks}
        ip_adapters = size_of(*(network for model in held for network in model.ip_adapters.networks))
        again = sum(getattr(network, "changed_bytes", 0) for network in networks)
        return self._adapters.count_bytes() + ip_adapters + again + self._prepared_bytes()

    def find_prepared(self, request_id: str) -> Adapted | None:
        """Returns the prepared request of that id, with what its rows will have; None if there is none."""
        return self._prepared.get(request_id)

    def evict_unused(self) -> None:
        """Drops the LoRAs that no prepared request uses."""
        self._adapters.evict_unused()


@contextmanager
def changed_unet(model: LoadedModel, updates: Mapping[str, Factors] | None) -> Iterator[Any]:
    """Gives the UNet as it answers with `updates`; without any, as it is. Inside the context so does `deep_cache`."""
    if not updates:
        yield model.unet
        return
    # A compiled network does not see what is hung on its layers.
    unet = model.unet.plain if isinstance(model.unet, CompilableNetwork) else model.unet
    with apply_factors(unet, updates):
        yield unet
