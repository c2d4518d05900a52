"""CLIP text encoders as the engine calls them, run through OpenVINO."""

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from deployments.engine.lora.rows.factors import add_update
from deployments.engine.openvino.compiler import Compiler
from deployments.engine.openvino.conversion import Input
from deployments.engine.openvino.converted_network import Origin
from deployments.engine.openvino.network import ChangeableNetwork

_UNKNOWN_END: Final = 2
_PROJECTION: Final = "text_projection"


class OpenVinoTextEncoder(ChangeableNetwork):
    """A CLIP text encoder, with a projection or without. Its final layer norm keeps its weights, which prompts that
    skip layers need, and so does its projection, through which the end token's state alone goes.

    Tokens are looked up outside of what is converted, for some stand for learnt vectors.
    """

    def __init__(self, compiler: Compiler, origin: Origin, text_encoder: Any) -> None:
        super().__init__(compiler, origin, text_encoder)
        tokens = text_encoder.config.max_position_embeddings
        place = _place_of_tokens(text_encoder)
        self.token_embedding = text_encoder.get_submodule(place)
        self._looked_up = _LookedUp()
        text_encoder.get_submodule(place.rpartition(".")[0]).token_embedding = self._looked_up
        width = text_encoder.config.hidden_size
        embedded = Input("embedded", torch.zeros(1, tokens, width), (0, 1))
        mask = Input("mask", torch.ones(1, tokens, dtype=torch.int64), (0, 1))
        self._is_masked = bool(text_encoder.config.to_dict().get("use_attention_mask"))
        self._projection: nn.Module | None = getattr(text_encoder, _PROJECTION, None)
        owners = [module for name, module in text_encoder.named_modules() if _is_leaf_but_ends(name, module)]
        inputs = [embedded, mask] if self._is_masked else [embedded]
        # The projection stays torch's.
        inside = {path: layer for path, layer in self.changeable.items() if layer is not self._projection}
        self._run = self.add_part("text encoder behind its tokens", self._call, inputs, owners, inside)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> BaseModelOutput | CLIPTextModelOutput:
        """Returns the states of `input_ids` [B, tokens]: the last one, and those after each layer; of an encoder with a
        projection, what it makes of the end token's, too.
        """
        embedded = self.token_embedding(input_ids)
        given = (embedded, attention_mask) if self._is_masked else (embedded,)
        states = self._run(*given, factors=self.factors)
        if self._projection is None:
            return BaseModelOutput(last_hidden_state=states[0], hidden_states=states[1:])
        return CLIPTextModelOutput(
            text_embeds=self._project(states[0][torch.arange(len(input_ids)), self._find_ends(input_ids)]),
            last_hidden_state=states[0],
            hidden_states=states[1:],
        )

    def _project(self, ends: Tensor) -> Tensor:
        assert self._projection is not None
        projected: Tensor = self._projection(ends)
        factors = self.factors.get(_PROJECTION)
        return projected if factors is None else add_update(self._projection, ends, projected, factors)

    def _find_ends(self, input_ids: Tensor) -> Tensor:
        """Returns where the texts' end tokens are [B]: by the config, or, in old configs, which name another, the
        highest; as in transformers.
        """
        end = self.config.eos_token_id
        return (input_ids if end == _UNKNOWN_END else (input_ids == end).int()).argmax(dim=-1)

    def _call(self, embedded: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        self._looked_up.embedded = embedded
        ids = torch.zeros(embedded.shape[:2], dtype=torch.int64)
        output = self.network(ids, attention_mask=mask, output_hidden_states=True, return_dict=True)
        return (output.last_hidden_state, *output.hidden_states)


class _LookedUp(nn.Module):
    """Stands where a text encoder looks up its tokens, and answers with what was looked up before."""

    def __init__(self) -> None:
        super().__init__()
        self.embedded = torch.empty(0)

    def forward(self, _ids: Tensor) -> Tensor:
        return self.embedded


def _place_of_tokens(text_encoder: nn.Module) -> str:
    places: list[str] = [name for name, _ in text_encoder.named_modules() if name.endswith("token_embedding")]
    return places[0]


def _is_leaf_but_ends(name: str, module: nn.Module) -> bool:
    return not list(module.children()) and not name.endswith(("final_layer_norm", _PROJECTION))
