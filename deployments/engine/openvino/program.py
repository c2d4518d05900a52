"""Runs a model of OpenVINO's on torch tensors."""

from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import Any

import openvino
import torch
from torch import Tensor

Shape = tuple[int, ...]


class Program:
    """A compiled model. May be called from several threads at once."""

    def __init__(self, compiled: openvino.CompiledModel, is_static: bool) -> None:
        """`is_static` says that the outputs' shapes are fixed."""
        self._compiled = compiled
        self._output_shapes = [tuple(output.shape) for output in compiled.outputs] if is_static else None
        self._outputs = len(compiled.outputs)
        # A request has buffers of its own, so each serves one call at a time.
        self._idle: deque[Any] = deque()

    def __call__(self, inputs: Sequence[Tensor], more: Sequence[openvino.Tensor] = ()) -> tuple[Tensor, ...]:
        """Returns the model's outputs for contiguous `inputs`, and `more` behind them, which are read where they are.

        They are fp32, and the caller's own.
        """
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        for i, given in enumerate(chain(map(share, inputs), more)):
            request.set_input_tensor(i, given)
        outputs = self._place_outputs(request)
        request.infer(share_outputs=True)
        answers = outputs or tuple(
            # Copied: the next call overwrites it.
            torch.from_numpy(request.get_output_tensor(i).data.copy())
            for i in range(self._outputs)
        )
        self._idle.append(request)
        return answers

    def _place_outputs(self, request: Any) -> tuple[Tensor, ...] | None:
        """Has the outputs written into tensors of the caller's, where their shapes are known before."""
        if self._output_shapes is None:
            return None
        outputs = tuple(torch.empty(shape) for shape in self._output_shapes)
        for i, output in enumerate(outputs):
            request.set_output_tensor(i, share(output))
        return outputs


def share(tensor: Tensor) -> openvino.Tensor:
    """Returns a contiguous `tensor` as OpenVINO's, over the same memory."""
    return openvino.Tensor(tensor.numpy(), shared_memory=True)
