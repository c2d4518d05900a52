"""An engine's first pictures, which nobody sees: kernels are chosen, memory and time measured, before anyone waits."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np

from deployments.engine.engine import Engine
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.events import Event, Failed, ImageFailed
from deployments.engine.protocol.inputs import Inputs, Picture
from deployments.engine.protocol.params import ControlSettings, GenerationParams, effective_params
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.sampler_names import SAMPLERS, resolve_sampler

log = logging.getLogger(__name__)

ROUNDS: Final = 2
TIMED: Final = 2
"""Calls of each size that are timed in each round; a busy neighbour rarely stays for several rounds."""

LONG_S: Final = 3.0
"""A call of more seconds is not tried with more rows: a warm-up must end some time."""

_ROWS_PER_IMAGE: Final = 2


def warm_up(engine: Engine, drain: Callable[[Engine], None] = Engine.drain) -> None:
    """Makes pictures with every model, alone and as a pair, and with each of its ControlNets; measures how the UNet's
    throughput grows with its rows; and forgets that it did.

    `drain` steps the engine until nothing is left to do. Raises ModelLoadError if a picture fails.
    """
    failed: list[str] = []
    emit, engine.tracker.emit = engine.tracker.emit, lambda event: failed.extend(_failure_of(event))
    for model in engine.models.values():
        for request in _first_requests(model):
            engine.submit(request)
            drain(engine)
        if not failed:
            _find_knee(engine, model)
    engine.tracker.emit = emit
    engine.tracker.start_anew()
    if failed:
        raise ModelLoadError(f"the warm-up picture could not be made: {failed[0]}")


def _first_requests(model: LoadedModel) -> Iterator[Request]:
    for images in (1, 2):
        yield _request(model, f"{images}", num_images=images, num_inference_steps=2)
    for net in model.controlnets:
        control = (ControlSettings(type=net),)
        yield _request(model, net, (_grey(model),), controls=control, num_inference_steps=3)


def _find_knee(engine: Engine, model: LoadedModel) -> None:
    """Runs calls of every size that fits, as long as they are not too long."""
    costs, bucket = engine.admission.costs, _request(model, "").bucket
    for _ in range(ROUNDS):
        for size in (size for size in engine.sizes if size >= _ROWS_PER_IMAGE):
            if engine.admission.capacity(bucket) < size:
                break
            _run_calls(engine, model, size)
            if costs.call_seconds(bucket, size) > LONG_S:
                break
    knee = costs.find_knee(bucket)
    log.info("model %s: %d UNet rows per call pay, of %d allowed", bucket.model, knee, engine.sizes[-1])


def _run_calls(engine: Engine, model: LoadedModel, size: int) -> None:
    """A few calls of `size` rows, whose images are given up then: decoding them would only take time."""
    request = _request(model, f"{size} rows", num_images=size // _ROWS_PER_IMAGE, num_inference_steps=50)
    engine.submit(request)
    # The first call of a size chooses kernels, and is metered.
    for _ in range(1 + TIMED):
        engine.step()
    engine.cancel(request.id)


def _request(model: LoadedModel, name: str, hints: tuple[Picture, ...] = (), **asked: Any) -> Request:
    """A request of the model's native size; of an inpainting checkpoint, with a grey picture to paint on."""
    grey = _grey(model)
    inputs = Inputs(image=grey, mask=grey[:, :, 0]) if model.inpaints_only else Inputs()
    params = GenerationParams(prompt="warm-up", seed=0).model_copy(update=asked)
    effective = effective_params(params, model.spec, inputs.task)
    request = Request(f"warm-up {model.spec.name} {name}", effective, inputs=replace(inputs, hints=hints))
    # With ControlNets or for inpainting diffusers corrects less: the default may be refused there, and others do.
    samplers = model.samplers.of(request.pipeline)
    sampler = next(
        name for name in (resolve_sampler(model.spec.default_sampler), *SAMPLERS) if samplers.refusal(name) is None
    )
    steps = min(effective.num_inference_steps, samplers.most_steps(sampler))
    return replace(request, params=effective.model_copy(update={"sampler": sampler, "num_inference_steps": steps}))


def _grey(model: LoadedModel) -> Picture:
    return np.full((*model.spec.native, 3), 128, dtype=np.uint8)


def _failure_of(event: Event) -> list[str]:
    return [event.error.message] if isinstance(event, Failed | ImageFailed) else []
