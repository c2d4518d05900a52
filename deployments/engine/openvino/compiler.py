"""Compiles converted models for the CPU."""

import logging
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import openvino

from deployments.engine.device.errors import raise_if_sticky
from deployments.engine.openvino.converted_files import ConvertedFiles
from deployments.engine.openvino.program import Program, Shape

log = logging.getLogger(__name__)

_CPU: Final = "CPU"


class Compiler:
    """OpenVINO as one process uses it: in fp32 on `threads` threads. `folder` keeps converted models, if given."""

    def __init__(self, threads: int, folder: Path | None = None) -> None:
        self.core = openvino.Core()
        self.files = ConvertedFiles(folder)
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="compile-unforeseen")
        self._settings = {
            # Never bf16, which it would choose by itself where the CPU has it.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            # A pinned thread waits for its core while another one is free.
            "ENABLE_CPU_PINNING": False,
        }

    def compile(self, model: openvino.Model, shapes: Sequence[Shape | None], *, is_static: bool) -> Program:
        """Compiles `model` for inputs of these shapes, or of any shapes unless `is_static`.

        An input without a shape becomes the number 0, and what adds it disappears. Inputs behind those that `shapes`
        are of may have any.
        """
        own = model.clone()
        parameters = own.get_parameters()
        for parameter, shape in zip(parameters, shapes, strict=False):
            if shape is None:
                _replace_by_zero(own, parameter)
            elif is_static:
                parameter.set_partial_shape(openvino.PartialShape(list(shape)))
        own.validate_nodes_and_infer_types()
        return Program(self.core.compile_model(own, _CPU, self._settings), is_static)

    def call_beside(self, method: Callable[..., object], *given: object) -> None:
        """Calls a method that compiles something on a thread of its own, unless its object is gone by then."""
        self._threads.submit(_try, weakref.WeakMethod(method), given)


def _try(reference: "weakref.WeakMethod[Callable[..., object]]", given: Sequence[object]) -> None:
    """Compiles; if it fails, calls go on with what they have."""
    try:
        if (method := reference()) is not None:
            method(*given)
    except Exception as error:
        raise_if_sticky(error)
        log.exception("a network could not be compiled for a shape that nobody foresaw")


def _replace_by_zero(model: openvino.Model, parameter: openvino.op.Parameter) -> None:
    rank = parameter.get_output_partial_shape(0).rank.get_length()
    zero = openvino.op.Constant(parameter.get_element_type(), openvino.Shape([1] * rank), [0])
    parameter.output(0).replace(zero.output(0))
    model.remove_parameter(parameter)
