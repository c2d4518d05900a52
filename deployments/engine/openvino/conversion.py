"""Converts functions of torch networks to models of OpenVINO's."""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import openvino
import torch
from diffusers.models.activations import GEGLU
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn
from torch.nn import functional

Function = Callable[..., tuple[Tensor, ...]]
"""A function of tensors alone that runs a torch network."""

# Silencing warnings is for the whole process, and networks are changed for their traces: one conversion at a time.
_lock = threading.Lock()


@contextmanager
def split_gates(network: nn.Module) -> Iterator[None]:
    """Has each gated linear unit of `network` (GEGLU, Shazeer 2020) compute its two halves apart inside the context.

    OpenVINO copies both halves of one product before it multiplies them: 5 % of a UNet's call of sixteen rows.
    """
    units = [module for module in network.modules() if isinstance(module, GEGLU)]
    for unit in units:
        unit.forward = partial(_run_gated_unit, unit)
    try:
        yield
    finally:
        for unit in units:
            del unit.forward


def _run_gated_unit(unit: GEGLU, states: Tensor) -> Tensor:
    weights = unit.proj.weight.chunk(2)
    biases = (None, None) if unit.proj.bias is None else unit.proj.bias.chunk(2)
    value, gate = (functional.linear(states, *half) for half in zip(weights, biases, strict=True))
    gated: Tensor = value * unit.gelu(gate)
    return gated


@dataclass(frozen=True, slots=True)
class Input:
    """An input of a function: an example of it, and those of its dimensions that differ from call to call."""

    name: str
    example: Tensor
    varying: tuple[int, ...] = (0,)

    @property
    def shape(self) -> list[int]:
        """Its shape as OpenVINO writes it: -1 for dimensions that vary."""
        return [-1 if i in self.varying else size for i, size in enumerate(self.example.shape)]


def convert(function: Function, inputs: Sequence[Input], network: nn.Module) -> openvino.Model:
    """Traces `function`, which runs `network`, with the examples, and returns it as a model whose inputs are `inputs`.

    The model shares the network's weights as long as they live. Raises whatever torch or OpenVINO raises for what it
    cannot trace or has no operation for.
    """
    # Not `openvino.convert_model`: it checks traces by running them twice more, reports its use to its makers over the
    # network, and takes three times as long. A function is traced faster than a module, of which a copy would be made.
    with _lock, warnings.catch_warnings(), torch.no_grad(), split_gates(network):
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(
            lambda *given: function(*given), tuple(each.example for each in inputs), check_trace=False, strict=False
        )
        frontend: Any = FrontEndManager().load_by_framework("pytorch")
        # In a variable: the frontend does not keep it alive.
        decoder = TorchScriptPythonDecoder(traced)
        model = frontend.convert(frontend.load(decoder))
    for parameter, each in zip(model.get_parameters(), inputs, strict=True):
        parameter.set_partial_shape(openvino.PartialShape(each.shape))
        parameter.output(0).get_tensor().set_names({each.name})
    model.validate_nodes_and_infer_types()
    return model
