"""The LoRAs of a request as one, ready to be applied to its rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from deployments.engine.lora.adapter import Adapter
from deployments.engine.lora.layer_update import LayerUpdate, combine
from deployments.engine.lora.rows.factors import count_group_bytes
from deployments.engine.lora.rows.layers import Layers
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.files.embeddings import EmbeddingFile
from deployments.engine.protocol.files.loras import LoraUse

Updates = Mapping[str, LayerUpdate]


@dataclass(frozen=True, eq=False)
class LoraSet:
    """What the LoRAs `uses` change in one model, on its device in its precision, by the layers' paths.

    `unet` are the updates of the UNet without those of cross-attention's projections of the prompt, `projections`;
    `text` are those of the text encoder, and `second_text` those of a second one. `embeddings` are the learnt
    embeddings that their files bring along, each with its vectors [vectors, width], whatever the scale.
    """

    uses: tuple[LoraUse, ...]
    unet: Updates
    projections: Updates
    text: Updates
    second_text: Updates = field(default_factory=dict)
    embeddings: Mapping[EmbeddingFile, Tensor] = field(default_factory=dict)

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
        vectors = sum(each.nbytes for each in self.embeddings.values())
        return vectors + sum(map(_bytes_of, (self.unet, self.projections, self.text, self.second_text)))

    @cached_property
    def group_bytes(self) -> Counter[str]:
        """The bytes of a group of its rows in the stacks of a UNet call, as `count_group_bytes` counts them."""
        return count_group_bytes(self.unet)


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

    Raises InvalidParameter, which names the LoRA, if it was made for another base.
    """
    second = {} if base.second_text is None else {"text_encoder_2": base.second_text}
    networks = {"unet": base.unet, "text_encoder": base.text} | second
    adapter.check(networks)
    unet, text, *more = (adapter.updates(name, layers, use.scale) for name, layers in networks.items())
    return LoraSet(
        (use,),
        _move({path: each for path, each in unet.items() if path not in base.projections}, base),
        _move({path: each for path, each in unet.items() if path in base.projections}, base),
        _move(text, base),
        _move(more[0], base) if more else {},
        {_describe(adapter, token): vectors.to(base.device) for token, vectors in adapter.embeddings.items()},
    )


@torch.inference_mode()
def unite(sets: Sequence[LoraSet]) -> LoraSet:
    """Returns several sets of one model as one. Raises InvalidParameter if two of them mean different vectors by a
    token.
    """
    if len(sets) == 1:
        return sets[0]
    return LoraSet(
        tuple(use for each in sets for use in each.uses),
        combine([each.unet for each in sets]),
        combine([each.projections for each in sets]),
        combine([each.text for each in sets]),
        combine([each.second_text for each in sets]),
        _unite_embeddings(sets),
    )


def _describe(adapter: Adapter, token: str) -> EmbeddingFile:
    vectors, width = adapter.embeddings[token].shape
    # It has no place of its own, and is identified by the file that it came with.
    return EmbeddingFile(token, token, "", f"{adapter.digest} {token}", vectors, width)


def _unite_embeddings(sets: Sequence[LoraSet]) -> dict[EmbeddingFile, Tensor]:
    found: dict[str, tuple[EmbeddingFile, Tensor]] = {}
    for each in sets:
        for file, vectors in each.embeddings.items():
            other = found.setdefault(file.token.casefold(), (file, vectors))
            if not torch.equal(other[1], vectors):
                raise InvalidParameter("loras", f"bring different textual inversions of {file.token!r} along")
    return dict(found.values())


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
