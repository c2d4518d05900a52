"""An engine's first pictures, which nobody sees: kernels are chosen and memory is touched before a caller waits."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from deployments.engine.counters import Counters
from deployments.engine.engine import Engine
from deployments.engine.errors import ModelLoadError
from deployments.engine.events import Event, ImageFailed, Refused
from deployments.engine.inputs import Inputs
from deployments.engine.models import LoadedModel
from deployments.engine.params import ControlSettings, GenerationParams, effective_params
from deployments.engine.row import Request


def warm_up(engine: Engine, drain: Callable[[Engine], None] = Engine.drain) -> None:
    """Makes pictures with every model, alone and as a pair, and with each of its ControlNets, and forgets that it did.

    `drain` steps the engine until nothing is left to do. Raises ModelLoadError if one fails.
    """
    failed: list[str] = []
    emit, engine.emit = engine.emit, lambda event: failed.extend(_failure_of(event))
    for model in engine.models.values():
        for request in _first_requests(model):
            engine.submit(request)
            drain(engine)
    engine.emit = emit
    engine.counters = Counters()
    if failed:
        raise ModelLoadError(f"the warm-up picture could not be made: {failed[0]}")


def _first_requests(model: LoadedModel) -> Iterator[Request]:
    grey = np.full((model.spec.native_size, model.spec.native_size, 3), 128, dtype=np.uint8)
    inputs = Inputs(image=grey, mask=grey[:, :, 0]) if model.inpaints_only else Inputs()
    name = f"warm-up-{model.spec.name}"
    asked = GenerationParams(prompt="warm-up", num_inference_steps=2, seed=0)
    for images in (1, 2):
        params = effective_params(asked.model_copy(update={"num_images": images}), model.spec, inputs.task)
        yield Request(f"{name}-{images}", params, inputs=inputs)
    for net in model.controlnets:
        params = effective_params(
            asked.model_copy(update={"controls": (ControlSettings(type=net),)}), model.spec, inputs.task
        )
        yield Request(f"{name}-{net}", params, inputs=replace(inputs, hints=(grey,)))


def _failure_of(event: Event) -> list[str]:
    return [event.error.message] if isinstance(event, Refused | ImageFailed) else []
