"""Warms an engine up: makes images that are thrown away, so that kernels are chosen, and memory and time measured."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
from torch import nn

from deployments.engine.engine import Engine
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.events import Event, Failed, ImageFailed, is_filtered
from deployments.engine.protocol.inputs import ImageArray, Inputs
from deployments.engine.protocol.params import GenerationParams, effective_params
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.protocol.sampler_names import SAMPLERS, resolve_sampler
from deployments.engine.protocol.settings import ControlSettings
from deployments.engine.steps.prepare import begin_row, prepare, with_model_facts
from deployments.engine.worker.calibration_keeper import CalibrationKeeper
from deployments.engine.worker.compilation import compile_networks
from deployments.engine.worker.model_loading import warm_model

log = logging.getLogger(__name__)

ROUNDS: Final = 2
TIMED: Final = 2
"""Calls of each size that are timed in each round; a neighbour's load rarely lasts for several rounds."""

LONG_S: Final = 3.0
"""Calls slower than this are not tried with more rows, which bounds how long the warm-up takes."""

_ROWS_PER_IMAGE: Final = 2
_GUIDED: Final = 7.5


def start_up(
    engine: Engine, keeper: CalibrationKeeper, drain: Callable[[Engine], None], *, measures: bool = True
) -> None:
    """Makes `engine` ready to serve, with what `keeper` knows from earlier starts.

    Of a model that is new to the keeper, everything is measured if the engine `measures` before it serves. Otherwise
    somebody waits for a picture: networks are called once, but not compiled, nor ControlNets called, which that picture
    may not need. Raises ModelLoadError if a call fails.
    """
    if measures:
        warm_up(engine, drain, lambda model: keeper.restore(model, engine.admission))
        keeper.save(engine.admission)
        return
    for model in engine.models.values():
        keeper.restore(model, engine.admission)
        warm_model(model, {net.network for net in model.controlnets.values()})


def warm_up(
    engine: Engine,
    drain: Callable[[Engine], None] = Engine.drain,
    restore: Callable[[LoadedModel], bool] = lambda _: False,
) -> None:
    """Makes images with every model, one and two at once, and with each of its ControlNets; measures how the UNet's
    throughput grows with its rows; then clears the counters.

    A model of which `restore` knows all that from an earlier start only has its networks called once. `drain` steps the
    engine until no request is left. Raises ModelLoadError if an image fails.
    """
    failed: list[str] = []
    warm: set[nn.Module] = set()
    with engine.tracker.redirect_events(lambda event: failed.extend(_failures_in(event))):
        for model in engine.models.values():
            # Before anything is measured: that is to be of the networks as they will run.
            compile_networks(model, warm)
            if restore(model):
                warm_model(model, warm)
            else:
                for request in _first_requests(model):
                    engine.submit(request)
                    drain(engine)
                if not failed:
                    _find_knee(engine, model)
            warm.update(model.networks)
            capture_steps(engine, model)
    engine.tracker.reset()
    if failed:
        raise ModelLoadError(f"the warm-up picture could not be made: {failed[0]}")


def measure_in_idle_time(engine: Engine) -> bool:
    """Times calls of one more size for a model whose knee is not known, in an engine that has nothing else to do.

    For models that are loaded when they are asked for: their first callers should not wait for measurements. Returns
    False if there is nothing to measure.
    """
    costs = engine.admission.costs
    for model in list(engine.models.values()):
        bucket = Bucket(model.spec.name, *model.spec.native)
        if costs.has_knee(bucket):
            # Not before: captured steps allocate nothing, so what a call takes can be measured on others alone.
            if capture_steps(engine, model):
                return True
            continue
        for size in _sizes_to_time(engine, bucket):
            known = costs.times_measured(bucket, size)
            if known >= TIMED:
                continue
            with engine.tracker.redirect_events(lambda _: None), engine.tracker.uncounted():
                _run_calls(engine, model, size)
            if costs.times_measured(bucket, size) > known:
                return True
            break  # A call of this size fails: what is known has to do.
        _set_knee(engine, bucket)
    return False


def capture_steps(engine: Engine, model: LoadedModel) -> bool:
    """Captures the steps of a model on CUDA at its native size. Returns False if there is nothing to capture."""
    # Asked again and again while the engine is idle: a request, with its picture, is made only where it is needed.
    if model.device.type != "cuda" or engine.stepper.has_captured(Bucket(model.spec.name, *model.spec.native)):
        return False
    request = with_model_facts(_warm_up_request(model, "capture"), model)
    row = begin_row(prepare(request, model, time.perf_counter()), 0, model)
    engine.stepper.capture(model, row, partial(engine.admission.may_capture, request.bucket))
    return True


def _first_requests(model: LoadedModel) -> Iterator[Request]:
    for images in (1, 2):
        yield _warm_up_request(model, f"{images}", num_images=images, num_inference_steps=2)
    for net in model.controlnets:
        control = (ControlSettings(type=net),)
        yield _warm_up_request(model, net, (_grey_image(model),), controls=control, num_inference_steps=3)


def _find_knee(engine: Engine, model: LoadedModel) -> None:
    """Times calls of every size that fits, until one takes too long, and sets the model's knee."""
    bucket = Bucket(model.spec.name, *model.spec.native)
    for _ in range(ROUNDS):
        for size in _sizes_to_time(engine, bucket):
            _run_calls(engine, model, size)
    _set_knee(engine, bucket)


def _sizes_to_time(engine: Engine, bucket: Bucket) -> Iterator[int]:
    """Yields the sizes of calls, ascending, as far as they fit and the one before was not too slow."""
    for size in (size for size in engine.sizes if size >= _ROWS_PER_IMAGE):
        if engine.admission.capacity(bucket) < size:
            return
        yield size
        if engine.admission.costs.call_seconds(bucket, size) > LONG_S:
            return


def _set_knee(engine: Engine, bucket: Bucket) -> None:
    knee = engine.admission.costs.find_knee(bucket)
    log.info("model %s: %d UNet rows per call pay, of %d allowed", bucket.model, knee, engine.sizes[-1])


def _run_calls(engine: Engine, model: LoadedModel, size: int) -> None:
    """Runs a few calls of `size` rows, then cancels their images: decoding them would only take time."""
    request = _warm_up_request(model, f"{size} rows", num_images=size // _ROWS_PER_IMAGE, num_inference_steps=50)
    engine.submit(request)
    # The first call of a size chooses kernels, and is metered.
    for _ in range(1 + TIMED):
        engine.step()
    # The caller looks at what they took.
    engine.settle()
    engine.cancel(request.id)


def _warm_up_request(model: LoadedModel, name: str, hints: tuple[ImageArray, ...] = (), **asked: Any) -> Request:
    """Returns a request of the model's native size; for an inpainting checkpoint, with a grey image to paint on."""
    grey = _grey_image(model)
    inputs = Inputs(image=grey, mask=grey[:, :, 0]) if model.inpaints_only else Inputs()
    params = GenerationParams(prompt="warm-up", seed=0, guidance_scale=_GUIDED).model_copy(update=asked)
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
    # A picture of no prompt may be whatever a checker looks for.
    return [event.error.message] if isinstance(event, Failed | ImageFailed) and not is_filtered(event) else []
