"""Warms an engine up: makes images that are thrown away, so that kernels are chosen, and memory and time measured."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np

from deployments.engine.engine import Engine
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.events import Event, Failed, ImageFailed
from deployments.engine.protocol.inputs import ImageArray, Inputs
from deployments.engine.protocol.params import ControlSettings, GenerationParams, effective_params
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.sampler_names import SAMPLERS, resolve_sampler

log = logging.getLogger(__name__)

ROUNDS: Final = 2
TIMED: Final = 2
"""Calls of each size that are timed in each round; a neighbour's load rarely lasts for several rounds."""

LONG_S: Final = 3.0
"""Calls slower than this are not tried with more rows, which bounds how long the warm-up takes."""

_ROWS_PER_IMAGE: Final = 2


def warm_up(engine: Engine, drain: Callable[[Engine], None] = Engine.drain) -> None:
    """Makes images with every model, one and two at once, and with each of its ControlNets; measures how the UNet's
    throughput grows with its rows; then clears the counters.

    `drain` steps the engine until no request is left. Raises ModelLoadError if an image fails.
    """
    failed: list[str] = []
    with engine.tracker.redirect_events(lambda event: failed.extend(_failures_in(event))):
        for model in engine.models.values():
            for request in _first_requests(model):
                engine.submit(request)
                drain(engine)
            if not failed:
                _find_knee(engine, model)
    engine.tracker.reset()
    if failed:
        raise ModelLoadError(f"the warm-up picture could not be made: {failed[0]}")


def _first_requests(model: LoadedModel) -> Iterator[Request]:
    for images in (1, 2):
        yield _warm_up_request(model, f"{images}", num_images=images, num_inference_steps=2)
    for net in model.controlnets:
        control = (ControlSettings(type=net),)
        yield _warm_up_request(model, net, (_grey_image(model),), controls=control, num_inference_steps=3)


def _find_knee(engine: Engine, model: LoadedModel) -> None:
    """Times calls of every size that fits, until one takes too long, and sets the model's knee."""
    costs, bucket = engine.admission.costs, _warm_up_request(model, "").bucket
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
    """Runs a few calls of `size` rows, then cancels their images: decoding them would only take time."""
    request = _warm_up_request(model, f"{size} rows", num_images=size // _ROWS_PER_IMAGE, num_inference_steps=50)
    engine.submit(request)
    # The first call of a size chooses kernels, and is metered.
    for _ in range(1 + TIMED):
        engine.step()
    engine.cancel(request.id)


def _warm_up_request(model: LoadedModel, name: str, hints: tuple[ImageArray, ...] = (), **asked: Any) -> Request:
    """Returns a request of the model's native size; for an inpainting checkpoint, with a grey image to paint on."""
    grey = _grey_image(model)
    inputs = Inputs(image=grey, mask=grey[:, :, 0]) if model.inpaints_only else Inputs()
    params = GenerationParams(prompt="warm-up", seed=0).model_copy(update=asked)
    effective = effective_params(params, model.spec, inputs.task)
    request = Request(f"warm-up {model.spec.name} {name}", effective, inputs=replace(inputs, hints=hints))
    # With ControlNets or for inpainting diffusers corrects fewer settings, so the default sampler may be refused there.
    samplers = model.samplers.of(request.pipeline)
    sampler = next(
        name for name in (resolve_sampler(model.spec.default_sampler), *SAMPLERS) if samplers.refusal(name) is None
    )
    steps = min(effective.num_inference_steps, samplers.max_steps(sampler))
    return replace(request, params=effective.model_copy(update={"sampler": sampler, "num_inference_steps": steps}))


def _grey_image(model: LoadedModel) -> ImageArray:
    return np.full((*model.spec.native, 3), 128, dtype=np.uint8)


def _failures_in(event: Event) -> list[str]:
    return [event.error.message] if isinstance(event, Failed | ImageFailed) else []
