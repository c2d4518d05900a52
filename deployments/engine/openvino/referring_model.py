"""Lets a converted UNet's cross-attention look at references, which are further inputs of it.

As LoRAs' branches are, it is added to a copy of the converted graph, which shares the weights: nothing is traced nor
loaded once more, and a UNet that no request gives references to is as it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import openvino
from openvino import opset13 as ops

from deployments.engine.conditioning.cross_attention import LayerColumns, context_width, layer_columns
from deployments.engine.lora.rows.layers import Layers
from deployments.engine.openvino.changed_model import named_weights, products_with

INPUTS: Final = 2
"""The inputs that are added: the keys of the references [B, T, width], and their bias [B, T]."""

_ATTENTION: Final = "ScaledDotProductAttention"
_PASSED: Final = ("Transpose", "Reshape", "Convert", "ConvertLike")
"""What may stand between attention and the layer behind it."""


@dataclass(frozen=True, slots=True)
class AttentionLayers:
    """Cross-attention layers by their paths: the `columns` that each takes of keys of `width`."""

    columns: Mapping[str, LayerColumns]
    width: int


NO_ATTENTION: Final = AttentionLayers(MappingProxyType({}), 0)


def attention_layers(network: Any, layers: Layers) -> AttentionLayers:
    """Returns those cross-attention layers of `network`, a UNet, of which there are some in `layers`."""
    columns = layer_columns(network)
    own = {path: each for path, each in columns.items() if f"{path}.to_out.0" in layers}
    return AttentionLayers(own, context_width(network))


def add_references(model: openvino.Model, layers: AttentionLayers) -> openvino.Model:
    """Returns a copy of `model` that shares its weights, with INPUTS behind its own.

    `layers` are those of its cross-attention; the weights of `model` are named by their layers' paths. Raises
    ValueError if a layer's attention is not where it is looked for.
    """
    changed = model.clone()
    weights = named_weights(changed)
    keys = ops.parameter(openvino.PartialShape([-1, -1, layers.width]), openvino.Type.f32)
    bias = ops.parameter(openvino.PartialShape([-1, -1]), openvino.Type.f32)
    # For all heads and queries.
    mask = ops.unsqueeze(bias, ops.constant([1, 2]))
    for path, own in layers.columns.items():
        attention = _attention_before(next(products_with(weights[f"{path}.to_out.0"])))
        users = list(attention.output(0).get_target_inputs())
        key, value = (_split_heads(_columns_of(keys, *each), own.heads) for each in (own.key, own.value))
        found = ops.scaled_dot_product_attention(attention.input_value(0), key, value, mask)
        both = ops.add(attention, found)
        for user in users:
            user.replace_source_output(both.output(0))
    changed.add_parameters([keys, bias])
    changed.validate_nodes_and_infer_types()
    return changed


def _attention_before(product: Any) -> Any:
    node = product.input_value(0).get_node()
    while node.get_type_name() in _PASSED:
        node = node.input_value(0).get_node()
    if node.get_type_name() != _ATTENTION:
        raise ValueError(f"{product.get_friendly_name()} does not follow upon attention")
    return node


def _columns_of(keys: Any, begin: int, end: int) -> Any:
    return ops.slice(keys, ops.constant([begin]), ops.constant([end]), ops.constant([1]), ops.constant([2]))


def _split_heads(states: Any, heads: int) -> Any:
    """Returns [B, T, channels] as [B, heads, T, width]."""
    shape = ops.constant(np.array([0, 0, heads, -1], np.int64))
    return ops.transpose(ops.reshape(states, shape, special_zero=True), ops.constant([0, 2, 1, 3]))
