"""Runs a torch network through OpenVINO: converts it at its first call, and compiles it for its inputs' shapes."""

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, repeat
from types import MappingProxyType
from typing import Final, TypeVar

import openvino
import torch
from cachetools import LRUCache
from torch import Tensor, nn

from deployments.engine.device.errors import is_out_of_memory, raise_if_sticky
from deployments.engine.device.memory import CpuMemory
from deployments.engine.lora.rows.changes import Changes, changes_of
from deployments.engine.lora.rows.factors import Factors
from deployments.engine.lora.rows.layers import Layers, apply_factors
from deployments.engine.openvino.changed_model import add_updates, name_weights, weighted_layers
from deployments.engine.openvino.compiler import Compiler
from deployments.engine.openvino.conversion import Function, Input, convert
from deployments.engine.openvino.given_factors import GivenFactors
from deployments.engine.openvino.held_weights import drop_weights, weights_of
from deployments.engine.openvino.program import Program, Shape
from deployments.engine.openvino.referring_model import NO_ATTENTION, AttentionLayers, add_references

log = logging.getLogger(__name__)

T = TypeVar("T")

STATIC_BYTES: Final = 32 * 2**20
"""Networks with at most so many bytes of weights are compiled for each shape of their inputs.

That saves some milliseconds a call, and costs a compilation and a copy of the weights for each shape. In larger ones
milliseconds do not count, and copies do: they are compiled once, for all shapes.
"""

KEPT_BYTES: Final = 2**29
"""The weights of all programs that are kept of such a network, which bounds the shapes that it stays compiled for."""

FEWEST_PROGRAMS: Final = 16
"""The shapes that it stays compiled for in any case, the latest ones."""

NOTHING: Final[Mapping[str, Factors]] = MappingProxyType({})

_TOLERANCE: Final = 1e-3

_Key = tuple[Shape | Changes | None, ...]
_OpenKey = tuple[bool | Changes, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """A network's weights: error messages begin with `title`, and `digest` tells them from all others."""

    title: str
    digest: str


@dataclass(slots=True, eq=False)
class _Compiled:
    """A program for some shapes, or the place of one; `lock` is held while it is compiled.

    `is_begun` says that a call has asked for it to be compiled beside it.
    """

    program: Program | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_begun: bool = False


class ConvertedNetwork:
    """A function of a torch network that runs through OpenVINO. May be called from any thread.

    At the first call it is converted, or read from the kept files; a new conversion must give torch's own answers to
    that call's inputs, or to random ones if it is compiled beforehand. If it does not, or cannot be converted, a
    warning names the network and torch runs it.
    """

    def __init__(
        self,
        compiler: Compiler,
        origin: Origin,
        part: str,
        function: Function,
        inputs: Sequence[Input],
        owners: Iterable[nn.Module],
        network: nn.Module,
        layers: Layers,
        attention: AttentionLayers = NO_ATTENTION,
    ) -> None:
        """`part` tells apart the functions of one `network`. `owners` are the modules whose weights nothing but
        `function` needs: they are dropped once it is converted. `layers` are those that LoRAs can change. `attention`
        are its cross-attention layers, which can be given references: as further inputs of `function`.
        """
        self._compiler, self._origin, self._part = compiler, origin, part
        self._function = function
        self._inputs = tuple(inputs)
        self._owners = tuple(owners)
        self._network, self._layers, self._attention = network, layers, attention
        self._model: openvino.Model | None = None
        self._weight_bytes = sum(weight.nbytes for *_, weight in weights_of(self._owners))
        self._is_static = self._weight_bytes <= STATIC_BYTES
        self._work_bytes = 0.0
        kept = max(FEWEST_PROGRAMS, KEPT_BYTES // max(1, self._weight_bytes))
        self._programs: LRUCache[_Key, _Compiled] = LRUCache(kept)
        self._open_programs: dict[_OpenKey, _Compiled] = {}
        self._given = GivenFactors(layers)
        self._weighted: Layers | None = None
        self._lock = threading.Lock()  # of all programs, held for moments
        self._converting = threading.Lock()
        self.has_failed = False
        self.is_exact = False
        """True while calls wait for the programs of their own shapes: the other one may give other last bits."""

    def __call__(self, *inputs: Tensor | None, factors: Mapping[str, Factors] = NOTHING) -> tuple[Tensor, ...]:
        """Returns the function's outputs, with its layers changed by `factors`, of which those of others do not count.

        What is None is left out: the function adds nothing for it. References come behind the function's own inputs, if
        there are any. Calls with factors are for one thread at a time.
        """
        own = {path: each for path, each in factors.items() if path in self._layers}
        if self._model is None and not self.has_failed:
            self._prepare(self._own(inputs))
        if self.has_failed:
            with apply_factors(self._network, own):
                return self._function(*inputs)
        changes = changes_of(own)
        program = self._program_now(_shapes_of(inputs), changes)
        # Never written to: shows meters, which see torch's memory only, what OpenVINO needs beside it.
        work = torch.empty(int(self._work_bytes * _elements(inputs)), dtype=torch.uint8)
        answers = program(self._cast(inputs), self._given.arrange(own, changes))
        del work
        return answers

    def compile_for(self, *shapes: Shape | None, changes: Changes = "none", for_all: bool = False) -> None:
        """Converts the function, and compiles it for inputs of these shapes and what LoRAs change, as far as that was
        not done before.

        Calls of other shapes go on meanwhile; one of these waits for it. With `for_all` it is compiled for inputs of
        any shapes, but for those that are None, and calls of shapes without a program of their own need not wait.
        """
        if not self._can_compile(shapes):
            return
        if for_all:
            self._open_program_for(shapes, changes)
        else:
            self._program_for(shapes, changes)

    def _can_compile(self, shapes: Sequence[Shape | None]) -> bool:
        if self._model is None and not self.has_failed:
            self._prepare(self._random_inputs(self._own(shapes)))
        return not self.has_failed

    def _own(self, given: Sequence[T]) -> Sequence[T]:
        """Returns of what is given for each input that for the function's own: without references."""
        return given[: len(self._inputs)]

    def weighted_layers(self) -> Layers:
        """Returns the layers that LoRAs can change, with weights. From any thread; converts the function before."""
        if self._model is None and not self.has_failed:
            self._prepare(self._random_inputs([tuple(each.example.shape) for each in self._inputs]))
        if self._model is None:
            return self._layers
        if self._weighted is None:
            self._weighted = weighted_layers(self._model, self._layers)
        return self._weighted

    @property
    def changed_bytes(self) -> int:
        """The bytes of the weights of programs for calls that LoRAs or references change; of a small network, as little
        as for more shapes of calls, nothing counts.
        """
        if self._is_static:
            return 0
        with self._lock:
            own = len(self._inputs)
            return self._weight_bytes * sum(key[-1] != "none" or len(key) > own + 1 for key in self._open_programs)

    def _random_inputs(self, shapes: Sequence[Shape | None]) -> list[Tensor | None]:
        random = torch.Generator().manual_seed(0)

        def draw(shape: Shape, own: Input) -> Tensor:
            # What is no fraction is a mask.
            is_float = own.example.is_floating_point()
            return torch.randn(shape, generator=random) if is_float else torch.ones(shape, dtype=own.example.dtype)

        pairs = zip(shapes, self._inputs, strict=True)
        return [None if shape is None else draw(shape, own) for shape, own in pairs]

    def _cast(self, inputs: Sequence[Tensor | None]) -> list[Tensor]:
        dtypes = chain((own.example.dtype for own in self._inputs), repeat(torch.float32))
        pairs = zip(inputs, dtypes, strict=False)
        return [given.to(dtype).contiguous() for given, dtype in pairs if given is not None]

    def _program_now(self, shapes: Sequence[Shape | None], changes: Changes) -> Program:
        """Returns the program for these shapes; while there is none, the one for all, if there is that."""
        if not self._is_static or self.is_exact:
            return self._program_for(shapes, changes)
        with self._lock:
            own = self._programs.setdefault((*shapes, changes), _Compiled())
            for_all = self._open_programs.get((*_presence(shapes), changes), _Compiled())
        if own.program is not None or for_all.program is None:
            return self._fill(own, shapes, changes, is_static=True)
        if not own.is_begun:
            own.is_begun = True
            self._compiler.call_beside(self._program_for, shapes, changes)
        return for_all.program

    def _program_for(self, shapes: Sequence[Shape | None], changes: Changes) -> Program:
        """Returns the program for these shapes, compiled if need be; of a large network, the one for all."""
        if not self._is_static:
            return self._open_program_for(shapes, changes)
        with self._lock:
            own = self._programs.setdefault((*shapes, changes), _Compiled())
        return self._fill(own, shapes, changes, is_static=True)

    def _open_program_for(self, shapes: Sequence[Shape | None], changes: Changes) -> Program:
        with self._lock:
            for_all = self._open_programs.setdefault((*_presence(shapes), changes), _Compiled())
        return self._fill(for_all, shapes, changes, is_static=False)

    def _fill(
        self, compiled: _Compiled, shapes: Sequence[Shape | None], changes: Changes, *, is_static: bool
    ) -> Program:
        assert self._model is not None
        with compiled.lock:
            if compiled.program is None:
                model = self._model
                if len(shapes) > len(self._inputs):
                    model = add_references(model, self._attention)
                if changes != "none":
                    model = add_updates(model, self._layers, changes)
                compiled.program = self._compile(model, shapes, is_static=is_static)
            return compiled.program

    def _compile(self, model: openvino.Model, shapes: Sequence[Shape | None], *, is_static: bool) -> Program:
        return self._compiler.compile(model, shapes, is_static=is_static)

    def _prepare(self, inputs: Sequence[Tensor | None]) -> None:
        """Converts the network on a thread of its own: the caller's may be in inference mode, or metered."""
        with self._converting:
            if self._model is None and not self.has_failed:
                with ThreadPoolExecutor(1, thread_name_prefix="convert") as thread:
                    thread.submit(self._convert_or_fall_back, inputs).result()

    def _convert_or_fall_back(self, inputs: Sequence[Tensor | None]) -> None:
        try:
            self._convert(inputs)
        except Exception as error:
            raise_if_sticky(error)
            if is_out_of_memory(error):
                raise
            log.warning("%s cannot run on OpenVINO; torch runs its %s: %s", self._origin.title, self._part, error)
            self._programs.clear()
            self._open_programs.clear()
            self.has_failed = True

    def _convert(self, inputs: Sequence[Tensor | None]) -> None:
        core, files = self._compiler.core, self._compiler.files
        origin = {"weights": self._origin.digest, "part": self._part}
        found = files.load(core, origin)
        if found is None:
            started = time.perf_counter()
            model = convert(self._function, self._inputs, self._network)
            name_weights(model, self._layers)
            found = files.keep(core, origin, model, lambda kept: self._check(kept, inputs))
            seconds = time.perf_counter() - started
            log.info("%s: its %s was converted for OpenVINO in %.1f s", self._origin.title, self._part, seconds)
        self._work_bytes, self._model = found.work_bytes, found.model
        drop_weights(self._owners)

    @torch.no_grad()
    def _check(self, model: openvino.Model, inputs: Sequence[Tensor | None]) -> float:
        """Returns the bytes that torch needs per element of the first input; OpenVINO does not say what it needs.

        Raises ValueError if `model` does not give torch's answers.
        """
        with CpuMemory().meter() as meter:
            wanted = self._function(*inputs)
        shapes = _shapes_of(inputs)
        program = self._compile(model, shapes, is_static=self._is_static)
        if self._is_static:
            self._programs[*shapes, "none"] = _Compiled(program)
        else:
            self._open_programs[*_presence(shapes), "none"] = _Compiled(program)
        answers = program(self._cast(inputs))
        for answer, right in zip(answers, wanted, strict=True):
            error = float((answer - right).abs().max() / right.abs().max().clamp(min=1.0))
            if not error <= _TOLERANCE:  # it may be no number
                raise ValueError(f"its answers differ from torch's by {error:.1e}")
        return meter.peak / _elements(inputs)


def _shapes_of(inputs: Sequence[Tensor | None]) -> list[Shape | None]:
    return [None if given is None else tuple(given.shape) for given in inputs]


def _presence(shapes: Sequence[Shape | None]) -> tuple[bool, ...]:
    """Returns which of the inputs there are, all that a program for all shapes depends on."""
    return tuple(shape is not None for shape in shapes)


def _elements(inputs: Sequence[Tensor | None]) -> int:
    first = inputs[0]
    assert first is not None
    return first.numel()
