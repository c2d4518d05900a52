"""The LoRAs of a request as one, ready to be applied to its rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from deployments.engine.lora.adapter import Adapter
from deployments.engine.lora.layer_update import LayerUpdate, combine
from deployments.engine.lora.rows.layers import Layers
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.lora import LoraUse

Updates = Mapping[str, LayerUpdate]


@dataclass(frozen=True, eq=False)
class LoraSet:
    """What the LoRAs `uses` change in one model, on its device in its precision, by the layers' paths.

    `unet` are the updates of the UNet without those of cross-attention's projections of the prompt, `projections`;
    `text` are those of the text encoder, and `second_text` those of a second one.
    """

    uses: tuple[LoraUse, ...]
    unet: Updates
    projections: Updates
    text: Updates
    second_text: Updates = field(default_factory=dict)

    @property
    def text_key(self) -> tuple[LoraUse, ...]:
        """What tells its texts' embeddings from others: nothing if it leaves the text encoders as they are."""
        return self.uses if self.text or self.second_text else ()

    @property
    def projection_key(self) -> tuple[LoraUse, ...]:
        """The same for the projections of texts' embeddings."""
        return self.uses if self.projections else ()

    @cached_property
    def bytes(self) -> int:
        """The bytes of all updates."""
        return sum(map(_bytes_of, (self.unet, self.projections, self.text, self.second_text)))

    @cached_property
    def unet_bytes(self) -> int:
        """The bytes of the updates that a row's part of a UNet call needs."""
        return _bytes_of(self.unet)


@dataclass(frozen=True, slots=True, eq=False)
class AdaptedBase:
    """What LoRAs change: the layers of a model's UNet and text encoder, and where and how the UNet runs.

    `projections` are the paths of cross-attention's projections of the prompt; `second_text` is there for a model with
    two text encoders.
    """

    unet: Layers
    text: Layers
    projections: frozenset[str]
    device: torch.device
    dtype: torch.dtype
    second_text: Layers | None = None


@torch.inference_mode()
def fit_adapter(adapter: Adapter, use: LoraUse, base: AdaptedBase) -> LoraSet:
    """Returns what `adapter` changes in `base`, as strongly as `use` says.

    Raises InvalidParameter, which names the LoRA, if it was made for another base, or needs what is not applied here.
    """
    if adapter.embeddings:
        words = ", ".join(adapter.embeddings)
        raise InvalidParameter(
            "loras", f"the LoRA {adapter.name!r} brings textual inversions along ({words}), which are not applied here"
        )
    second = {} if base.second_text is None else {"text_encoder_2": base.second_text}
    networks = {"unet": base.unet, "text_encoder": base.text} | second
    adapter.check(networks)
    unet, text, *more = (adapter.updates(name, layers, use.scale) for name, layers in networks.items())
    return LoraSet(
        (use,),
        _move({path: each for path, each in unet.items() if path not in base.projections}, base),
        _move({path: each for path, each in unet.items() if path in base.projections}, base),
        _move(text, base),
        *(_move(each, base) for each in more),
    )


@torch.inference_mode()
def unite(sets: Sequence[LoraSet]) -> LoraSet:
    """Returns several sets of one model as one."""
    if len(sets) == 1:
        return sets[0]
    return LoraSet(
        tuple(use for each in sets for use in each.uses),
        combine([each.unet for each in sets]),
        combine([each.projections for each in sets]),
        combine([each.text for each in sets]),
        combine([each.second_text for each in sets]),
    )


def _move(updates: Updates, base: AdaptedBase) -> Updates:
    def move(tensor: Tensor) -> Tensor:
        return tensor.to(base.device, base.dtype).contiguous()

    return {
        path: LayerUpdate(move(each.down), move(each.up), None if each.gain is None else move(each.gain))
        for path, each in updates.items()
    }


def _bytes_of(updates: Updates) -> int:
    tensors = (tensor for each in updates.values() for tensor in (each.down, each.up, each.gain))
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
