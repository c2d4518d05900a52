"""Replays whole steps as CUDA graphs: one launch instead of a thousand, for the shapes that are known beforehand."""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from deployments.engine.device.errors import is_out_of_memory, raise_if_sticky
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.row import Row
from deployments.engine.steps.arena import Arena
from deployments.engine.steps.call import StepCall, lay_out_one_row
from deployments.engine.steps.denoise import Step, run_step

log = logging.getLogger(__name__)

_WARM_UP_CALLS: Final = 2
"""Calls before a capture: kernels are chosen, and libraries allocate what they keep."""


class Capture(Protocol):
    """Makes a step that can be replayed."""

    def __call__(self, step: Step) -> Step:
        """Returns a function that does what `step` does, on the very tensors that it uses now."""


class CudaCapture:
    """Captures steps as CUDA graphs that share one memory pool, which is free when all of them are gone.

    For the engine's thread.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, step: Step) -> Step:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_CALLS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads allocate meanwhile, to decode and to prepare: only this thread must not.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            answers = step()
        self._pool = self._pool or graph.pool()

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return answers

        return replay


@dataclass(frozen=True, slots=True, eq=False)
class _CapturedStep:
    """A step that was captured for one size. Which rows it advances it reads from `call`, whose tensors are its own."""

    call: StepCall
    replay: Step


class StepGraphs:
    """The captured steps of one arena, by padded size and length of prompts.

    Steps with ControlNets, LoRAs, references or without the UNet's deep blocks, and those of other sizes and lengths,
    are not captured.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._captured: dict[tuple[int, int], _CapturedStep] = {}
        self._latest: StepCall | None = None

    def __len__(self) -> int:
        """The number of captured steps."""
        return len(self._captured)

    @torch.inference_mode()
    def capture(
        self,
        model: LoadedModel,
        row: Row,
        sizes: Sequence[int],
        lengths: Sequence[int],
        capture: Capture,
        fits: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """Captures a step for every size that `fits` and every length of prompts (tokens), the largest first.

        `row` is in a slot of the arena, and of no use afterwards. A size for which memory runs out is left out. If one
        cannot be captured for another reason, smaller ones are not either.
        """
        for tokens, size in itertools.product(sorted(lengths, reverse=True), sorted(sizes, reverse=True)):
            if not fits(size):
                log.info("steps of %d rows are not captured: there is no memory for them", size)
                continue
            call = lay_out_one_row(self._arena, row, size, tokens)
            self._arena.steps.zero_()
            try:
                replay = capture(partial(run_step, model, self._arena, call))
            except Exception as error:
                raise_if_sticky(error)
                if is_out_of_memory(error):
                    log.warning("steps of %d rows are not captured: memory ran out", size)
                    continue
                log.exception("steps of %d rows cannot be captured: they and smaller ones run as they are", size)
                return
            self._captured[size, tokens] = _CapturedStep(call, replay)

    @torch.inference_mode()
    def find(self, call: StepCall) -> Step | None:
        """Returns a captured step that does what `call` asks for, for more rows maybe; None if there is none."""
        unet = call.whole
        if unet is None or call.shallow is not None or unet.controls or unet.keeps_deep or unet.updates:
            return None
        if unet.references is not None:
            return None
        captured = self._captured.get((unet.size, call.prompts.tokens))
        if captured is not None and call is not self._latest:
            _copy_indices(call, captured.call)
            self._latest = call
        return None if captured is None else captured.replay


def _copy_indices(call: StepCall, captured: StepCall) -> None:
    """Has `captured` advance the rows of `call`: as often as it has places for rows, which changes nothing."""
    assert call.whole is not None
    assert captured.whole is not None
    missing = captured.whole.size - len(call.rows)
    for name in ("rows", "offsets", "prompted", "partner"):
        values: Tensor = getattr(call, name)
        getattr(captured, name).copy_(torch.cat((values, values[:1].expand(missing))))
    for name in ("owner", "rows", "prompts"):
        getattr(captured.whole, name).copy_(getattr(call.whole, name))
