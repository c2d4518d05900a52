"""Takes cross-attention's keys and values out of a UNet: they depend on the prompt alone, and become its input.

Beside the prompts it can look at references, whose keys and values come from elsewhere (IP-Adapter: Ye et al. 2023).
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from cachetools import LRUCache
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from deployments.engine.lora.layer_update import LayerUpdate
from deployments.engine.lora.rows.factors import add_update, stack_updates

KEPT_BYTES: Final = 128 * 2**20
"""The size of the cache of the latest prompts' keys; a chunk of 77 tokens takes 3.8 MB with SD1.5 in fp16."""

MASKED: Final = -1e4
"""What is added to the products with a key that is not there: in every precision its share is 0 then."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPrompt:
    """A prompt as the networks need it.

    `embedding` [tokens, dim] is the text encoder's, for ControlNets; `keys` [tokens, width] are the keys and values of
    all cross-attention layers side by side, for the UNet. `pooled` [width] is the text as a whole, for networks that
    are told it.
    """

    embedding: Tensor
    keys: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embedding)

    @property
    def bytes(self) -> int:
        """The bytes of the keys."""
        return self.keys.nbytes


class CrossAttentionCache:
    """The key and value projections of a UNet's cross-attention, taken out of its loop. Used from one thread."""

    def __init__(self, unet: Any, kept_bytes: int = KEPT_BYTES) -> None:
        """`unet` is diffusers' and is changed: from now on its `encoder_hidden_states` are keys [B, tokens, width], as
        `project` makes them, in place of embeddings; or an `AttentionContext`, with references beside them.

        The keys of the latest prompts are kept, as far as they fit into `kept_bytes`.
        """
        self._projections = _take_out_projections(unet)
        self._cache: LRUCache[tuple[int, Hashable], EncodedPrompt] = LRUCache(
            kept_bytes, getsizeof=lambda prompt: prompt.bytes
        )

    @property
    def paths(self) -> frozenset[str]:
        """The paths that the projections had in the UNet."""
        return frozenset(self._projections)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The outputs and inputs of the projections, in the order of the keys' columns: a layer's keys, its values."""
        projections = (each.projection for each in self._projections.values())
        return tuple((each.out_features, each.in_features) for each in projections)

    @torch.inference_mode()
    def project(
        self,
        embedding: Tensor,
        updates: Mapping[str, LayerUpdate] | None = None,
        updates_key: Hashable = (),
        pooled: Tensor | None = None,
    ) -> EncodedPrompt:
        """Returns `embedding` [tokens, dim] with its projections, changed by `updates`, by their paths, and `pooled`.

        `updates_key` tells these updates from others. Do not modify it: requests with one prompt share it.
        """
        # By identity: the prompt encoder's cache returns the same tensor, which an entry here keeps alive.
        key = (id(embedding), updates_key)
        found = self._cache.get(key)
        if found is None:
            given = embedding[None]
            keys = {path: each.projection(given) for path, each in self._projections.items()}
            layers = {path: each.projection for path, each in self._projections.items()}
            for path, factors in stack_updates([updates or {}], layers).items():
                keys[path] = add_update(layers[path], given, keys[path], factors)
            found = EncodedPrompt(embedding, torch.cat([each[0] for each in keys.values()], dim=1), pooled)
            if found.bytes <= self._cache.maxsize:
                self._cache[key] = found
        return found


class AttentionContext(NamedTuple):
    """What a call's cross-attention looks at, in place of the prompts alone.

    `prompts` [B, tokens, width] and `references` [B, T, width] are the keys and values of all layers side by side.
    `bias` [B, T] is added to the products with the references' keys: 0, or MASKED where a row has fewer of them.
    """

    prompts: Tensor
    references: Tensor
    bias: Tensor


class ReferenceAttention:
    """An attention processor for the cross-attention of diffusers' transformers.

    To a tensor it is diffusers' own. To an `AttentionContext` it adds what the same queries find in the references. The
    layers are as Stable Diffusion's: without norms of their own.
    """

    def __init__(self) -> None:
        self._plain = AttnProcessor2_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | AttentionContext | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attends from `hidden_states` [B, tokens, channels]."""
        if not isinstance(encoder_hidden_states, AttentionContext):
            answer: Tensor = self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return answer
        context, prompts = encoder_hidden_states, encoder_hidden_states.prompts
        query, key, value = (
            split_heads(each, attn.heads) for each in (attn.to_q(hidden_states), attn.to_k(prompts), attn.to_v(prompts))
        )
        mixed = scaled_dot_product_attention(query, key, value)
        mixed = mixed + attend_to_references(attn, query, context)
        changed: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return changed


def attend_to_references(attn: Any, query: Tensor, context: AttentionContext) -> Tensor:
    """Returns what `query` [B, heads, tokens, width] finds in the references, in its shape."""
    key, value = (split_heads(each(context.references), attn.heads) for each in (attn.to_k, attn.to_v))
    found: Tensor = scaled_dot_product_attention(query, key, value, attn_mask=context.bias[:, None, None])
    return found


def split_heads(states: Tensor, heads: int) -> Tensor:
    """Returns `states` [B, tokens, channels] as [B, heads, tokens, width]."""
    split: Tensor = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


class LayerColumns(NamedTuple):
    """The columns of keys that one layer takes for its own keys and values, from where to where, and its heads."""

    key: tuple[int, int]
    value: tuple[int, int]
    heads: int


def layer_columns(unet: Any) -> dict[str, LayerColumns]:
    """Returns the columns of all cross-attention layers of a UNet that a `CrossAttentionCache` has changed, by path."""
    layers = ((path, layer) for path, layer in unet.named_modules() if path.endswith(".attn2"))
    return {
        path: LayerColumns((layer.to_k.begin, layer.to_k.end), (layer.to_v.begin, layer.to_v.end), layer.heads)
        for path, layer in layers
    }


def context_width(unet: Any) -> int:
    """Returns the width of a UNet's `encoder_hidden_states`: of keys if a `CrossAttentionCache` has changed it."""
    columns = [module.end for module in unet.modules() if isinstance(module, _Columns)]
    dim = unet.config.cross_attention_dim
    return max(columns) if columns else int(dim if isinstance(dim, int) else dim[0])


class _Columns(nn.Module):
    """Replaces a projection by its columns, `begin` to `end`, of what was projected before."""

    def __init__(self, projection: nn.Linear, begin: int, end: int) -> None:
        super().__init__()
        self.projection = projection
        self.begin, self.end = begin, end

    def forward(self, keys: Tensor) -> Tensor:
        return keys[..., self.begin : self.end]


def _take_out_projections(unet: nn.Module) -> dict[str, _Columns]:
    """Returns the columns that replace the projections, by the path that those had."""
    taken: dict[str, _Columns] = {}
    layers: dict[str, Any] = {path: module for path, module in unet.named_modules() if path.endswith(".attn2")}
    begin = 0
    for path, layer in layers.items():
        for name in ("to_k", "to_v"):
            projection = layer.get_submodule(name)
            columns = taken[f"{path}.{name}"] = _Columns(projection, begin, begin + projection.out_features)
            layer.add_module(name, columns)
            begin = columns.end
        layer.set_processor(ReferenceAttention())
    return taken
