"""Lets a UNet's cross-attention look at references beside the prompts (IP-Adapter: Ye et al. 2023)."""

from typing import Any, Final, NamedTuple

from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

MASKED: Final = -1e4
"""What is added to the products with a key that is not there: in every precision its share is 0 then."""


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
    return scaled_dot_product_attention(query, key, value, attn_mask=context.bias[:, None, None])


def split_heads(states: Tensor, heads: int) -> Tensor:
    """Returns `states` [B, tokens, channels] as [B, heads, tokens, width]."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)
