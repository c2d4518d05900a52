"""Lets inputs of a converted network change its layers: what LoRAs add to their answers, for each group of rows.

A converted network keeps the layers' paths as names of their weights. So nothing is traced, nor loaded once more, for
LoRAs: a copy of its graph, which shares the weights, gets a branch at each layer.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import openvino
import torch
from openvino import opset13 as ops
from torch import Tensor, nn

from deployments.engine.lora.rows.changes import Changes, in_attention
from deployments.engine.lora.rows.factors import Factors
from deployments.engine.lora.rows.layers import Layers

_NAMED: Final = "layer:"
_PASSED: Final = ("Split", "VariadicSplit", "Transpose", "Reshape", "Convert")
"""What may stand between a weight and the product with it."""

_PRODUCTS: Final = ("MatMul", "Convolution")


def name_weights(model: openvino.Model, layers: Layers) -> None:
    """Names the weights in `model`, which still shares those of torch's `layers`, by the layers' paths.

    Raises ValueError if it does not have them all: then LoRAs could not change some.
    """
    paths = {layer.weight.data_ptr(): path for path, layer in layers.items()}
    for constant in _constants_of(model):
        path = paths.pop(constant.data.ctypes.data, None)
        if path is not None:
            constant.set_friendly_name(_NAMED + path)
    if paths:
        raise ValueError(f"it has no weights of {min(paths.values())!r} that could be found again")


def weighted_layers(model: openvino.Model, layers: Layers) -> Layers:
    """Returns `layers`, of which torch has dropped the weights, with those in `model`. These are not copied."""
    weights = named_weights(model)
    return {path: _with_weight(layer, weights[path]) for path, layer in layers.items()}


def _with_weight(layer: nn.Linear | nn.Conv2d, constant: Any) -> nn.Linear | nn.Conv2d:
    values = torch.from_numpy(np.asarray(_Values(constant.data)))
    new = nn.Linear(1, 1, device="meta") if isinstance(layer, nn.Linear) else nn.Conv2d(1, 1, 1, device="meta")
    new.__dict__.update(layer.__dict__ | {"_parameters": dict(layer._parameters)})
    new.weight = nn.Parameter(values.view(layer.weight.shape), requires_grad=False)
    return new


class _Values:
    """An array of OpenVINO's, which is read-only: torch has no such tensors. Nobody writes to weights."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def add_updates(model: openvino.Model, layers: Layers, changes: Changes) -> openvino.Model:
    """Returns a copy of `model` that shares its weights, whose layers take updates as further inputs.

    `layers` are all that can be changed in it, by their paths. The inputs are those of `arrange_factors` for each that
    `layers_changed` returns, in its order.
    """
    changed, groups = model.clone(), None
    weights = named_weights(changed)
    for path, layer in layers_changed(layers, changes).items():
        branch = _Branch(layer, groups, has_gains=has_gains(changes))
        groups = branch.groups
        branch.add_to(weights[path])
        changed.add_parameters(branch.parameters)
    changed.validate_nodes_and_infer_types()
    return changed


def layers_changed(layers: Layers, changes: Changes) -> Layers:
    """Returns those of `layers` that a model for `changes` lets change."""
    if changes.startswith("all"):
        return layers
    return {path: layer for path, layer in layers.items() if in_attention(path)}


def has_gains(changes: Changes) -> bool:
    """Returns True if `changes` are of gains, too."""
    return changes.endswith("gains")


def arrange_factors(factors: Factors, layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, ...]:
    """Returns what a changed model is given for `layer`: down, up, and the gains if it takes them."""
    down = factors.down
    if isinstance(layer, nn.Conv2d):
        # [N, rank, taps, in]
        down = down.flatten(3).transpose(2, 3)
    gain = torch.zeros(factors.up.shape[:2]) if factors.gain is None else factors.gain
    return down.contiguous(), factors.up.contiguous(), gain.contiguous()


def no_factors(layer: nn.Linear | nn.Conv2d, groups: int) -> Factors:
    """Returns factors that change nothing."""
    shape = layer.weight.shape
    return Factors(torch.zeros(groups, 1, *shape[1:]), torch.zeros(groups, shape[0], 1))


class _Branch:
    """What is added to the answer of one layer, from inputs of its own; it may be computed in parts, side by side."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, groups: Any, *, has_gains: bool) -> None:
        """`groups` [1] is the number of groups of rows; None before it is known."""
        self._layer = layer
        self._outputs, inside, *kernel = layer.weight.shape
        middle = [int(np.prod(kernel))] if kernel else []
        self._down = _parameter(-1, -1, *middle, inside)
        self._up = _parameter(-1, self._outputs, -1)
        self._gain = _parameter(-1, self._outputs) if has_gains else None
        self.groups = _dimensions(self._down, 0) if groups is None else groups

    @property
    def parameters(self) -> list[Any]:
        """Its inputs, in the order of `arrange_factors`."""
        return [each for each in (self._down, self._up, self._gain) if each is not None]

    def add_to(self, weight: Any) -> None:
        """Adds the branch where `weight` is used."""
        products = list(products_with(weight))
        hidden = self._reduce(products[0].input_value(0))
        ups, gains = self._up.outputs(), [None] if self._gain is None else self._gain.outputs()
        if len(products) > 1:
            sizes = [self._outputs // len(products)] * len(products)
            ups = _split(self._up, sizes)
            gains = [None] * len(sizes) if self._gain is None else _split(self._gain, sizes)
        for product, up, gain in zip(products, ups, gains, strict=True):
            users = list(product.output(0).get_target_inputs())
            changed = ops.add(product, self._expand(hidden, product, up, gain, self._outputs // len(products)))
            for user in users:
                user.replace_source_output(changed.output(0))

    def _reduce(self, given: Any) -> Any:
        """Returns what `down` makes of a layer's input: [N, tokens, rank], of a convolution [N, rows, rank, pixels]."""
        if isinstance(self._layer, nn.Linear):
            states = ops.reshape(given, _shape(self.groups, -1, self._layer.weight.shape[1]), special_zero=False)
            return ops.matmul(states, self._down, transpose_a=False, transpose_b=True)
        channels, kernel = self._layer.weight.shape[1], self._layer.weight.shape[2:]
        rank, taps = _dimensions(self._down, 1), int(np.prod(kernel))
        sides = _dimensions(given, 2, 3)
        maps = ops.reshape(given, _shape(self.groups, -1, channels, _product(sides)), special_zero=False)
        down = ops.reshape(self._down, _shape(self.groups, 1, -1, channels), special_zero=False)
        hidden = ops.matmul(down, maps, transpose_a=False, transpose_b=False)
        if taps == 1 and set(self._layer.stride) == {1} and not any(_padding(self._layer)):
            return hidden
        # Each tap saw the pixel that is its own in the middle: one convolution moves them into place and adds them up.
        taken = ops.reshape(hidden, _shape(-1, taps, sides), special_zero=False)
        moved = ops.convolution(
            taken,
            ops.constant(np.eye(taps, dtype=np.float32).reshape(1, taps, *kernel)),
            strides=list(self._layer.stride),
            pads_begin=_padding(self._layer),
            pads_end=_padding(self._layer),
            dilations=list(self._layer.dilation),
        )
        pixels = _product(_dimensions(moved, 2, 3))
        return ops.reshape(moved, _shape(self.groups, -1, rank, pixels), special_zero=False)

    def _expand(self, hidden: Any, product: Any, up: Any, gain: Any, out: int) -> Any:
        """Returns what is added to `product` with its `out` answers, in its shape."""
        own = ops.shape_of(product)
        if isinstance(self._layer, nn.Linear):
            added = ops.matmul(hidden, up, transpose_a=False, transpose_b=True)
            grouped, ones = _shape(self.groups, -1, out), [1]
        else:
            added = ops.matmul(ops.unsqueeze(up, ops.constant([1])), hidden, transpose_a=False, transpose_b=False)
            pixels = _product(_dimensions(product, 2, 3))
            grouped, ones = _shape(self.groups, -1, out, pixels), [1, 3]
        if gain is not None:
            answers = ops.reshape(product, grouped, special_zero=False)
            added = ops.add(added, ops.multiply(answers, ops.unsqueeze(gain, ops.constant(ones))))
        return ops.reshape(added, own, special_zero=False)


def _padding(layer: nn.Conv2d) -> list[int]:
    return [int(side) for side in layer.padding]


def products_with(weight: Any) -> Iterator[Any]:
    """Yields the products with a weight, in the order of its answers."""
    for output in weight.outputs():
        for user in output.get_target_inputs():
            node = user.get_node()
            if node.get_type_name() in _PASSED:
                yield from products_with(node)
            elif node.get_type_name() in _PRODUCTS:
                yield node


def _constants_of(model: openvino.Model) -> Iterator[Any]:
    return (each for each in model.get_ops() if each.get_type_name() == "Constant")


def named_weights(model: openvino.Model) -> dict[str, Any]:
    """Returns the weights in `model` that `name_weights` has named, by their layers' paths."""
    named = ((each.get_friendly_name(), each) for each in _constants_of(model))
    return {name.removeprefix(_NAMED): each for name, each in named if name.startswith(_NAMED)}


def _parameter(*shape: int) -> Any:
    return ops.parameter(openvino.PartialShape(list(shape)), openvino.Type.f32)


def _dimensions(node: Any, *axes: int) -> Any:
    """Returns these dimensions of what `node` gives."""
    return ops.gather(ops.shape_of(node), ops.constant(list(axes)), ops.constant(0))


def _product(dimensions: Any) -> Any:
    return ops.reduce_prod(dimensions, ops.constant([0]), keep_dims=True)


def _shape(*parts: Any) -> Any:
    nodes = [ops.constant([part]) if isinstance(part, int) else part for part in parts]
    return ops.concat(nodes, axis=0)


def _split(node: Any, sizes: list[int]) -> list[Any]:
    """Splits what `node` gives along its second dimension."""
    return list(ops.variadic_split(node, ops.constant(1), ops.constant(sizes)).outputs())
