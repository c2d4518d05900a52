"""Reads what one CLIP text encoder answers to a chunk of a prompt, as the UNet is to have it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class EncodedText:
    """A text's `states` [tokens, dim] and, of models with two text encoders, its `pooled` embedding [width]."""

    states: Tensor
    pooled: Tensor | None = None


class TextNetwork:
    """One of a model's text encoders, and the token that its texts are padded with.

    A model of one text encoder sees its last hidden state, or an earlier one through the final norm; a model of two,
    Stable Diffusion XL, sees the states before the last layer of both, as they are, and the second one's pooled and
    projected embedding besides.
    """

    def __init__(self, tokenizer: Any, network: Any, device: torch.device, dtype: torch.dtype, *, is_alone: bool):
        """`tokenizer` and `network` are transformers' CLIP classes; `is_alone` says that the model has no other."""
        self.network = network
        self.positions = min(tokenizer.model_max_length, int(network.config.max_position_embeddings))
        self._pad = tokenizer.pad_token_id
        self._final_layer_norm = _find_final_layer_norm(network)
        self._skipped = 0 if is_alone else 1
        self._device, self._dtype = device, dtype

    @property
    def most_skipped(self) -> int:
        """The most layers that a prompt may skip."""
        return int(self.network.config.num_hidden_layers) - 1 - self._skipped

    def read(self, ids: Sequence[int], clip_skip: int) -> EncodedText:
        """Returns what it answers to `ids`, which begin with the start token and end with the end token.

        `clip_skip` counts the last layers left out, of those that are not left out anyway.
        """
        padding = self.positions - len(ids)
        # A few text encoders say in their config that padding is masked; diffusers obeys it, and so must this.
        mask = None
        if self.network.config.to_dict().get("use_attention_mask"):
            mask = self._batch_of_one([1] * len(ids) + [0] * padding)
        # Named, because a config may ask for tuples.
        output = self.network(
            self._batch_of_one([*ids, *[self._pad] * padding]),
            attention_mask=mask,
            output_hidden_states=clip_skip + self._skipped > 0,
            return_dict=True,
        )
        if self._skipped:
            states = output.hidden_states[-(clip_skip + self._skipped + 1)]
        elif clip_skip:
            states = self._final_layer_norm(output.hidden_states[-(clip_skip + 1)])
        else:
            states = output.last_hidden_state
        pooled: Tensor | None = getattr(output, "text_embeds", None)
        return EncodedText(self._move(states), None if pooled is None else self._move(pooled))

    def _move(self, answer: Tensor) -> Tensor:
        return answer[0].to(device=self._device, dtype=self._dtype)

    def _batch_of_one(self, values: Sequence[int]) -> Tensor:
        return torch.tensor([values], device=self._device)


def _find_final_layer_norm(network: nn.Module) -> nn.Module:
    # By name, because transformers moved it: once under `text_model`, now an attribute of the encoder itself.
    modules: dict[str, nn.Module] = dict(network.named_modules())
    return next(module for name, module in modules.items() if name.endswith("final_layer_norm"))
