"""Loads models beside a serving engine: tells it which models come and go, and warms new ones before they are used."""

import logging
import queue
import threading
from collections.abc import Callable, Collection
from typing import Final

import numpy as np
import torch
from torch import nn

from deployments.engine.conditioning.added_conditions import sample_conditions
from deployments.engine.conditioning.cross_attention import context_width
from deployments.engine.device.errors import DeviceLost, convert_device_errors, is_out_of_memory, raise_if_sticky
from deployments.engine.engine import Engine
from deployments.engine.models.attention import sample_inputs
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.models.manager import DiffusionModelManager
from deployments.engine.protocol.errors import EngineError, EngineLost, ModelLoadError
from deployments.engine.steps.pictures import decode_latents
from deployments.engine.worker.calibration_keeper import CalibrationKeeper
from deployments.engine.worker.compilation import compile_networks

log = logging.getLogger(__name__)

Inbox = queue.SimpleQueue[Callable[[Engine], object]]
"""Messages that the engine's thread runs between two steps."""

RELEASE_TIMEOUT_S: Final = 60.0
"""How long a load waits for the engine to drop models: longer than an iteration of its loop takes."""

_ROWS: Final = 2
"""One guided image."""


def connect(manager: DiffusionModelManager, engine: Engine, inbox: Inbox, keeper: CalibrationKeeper) -> None:
    """Lets models load beside `engine`, which serves meanwhile and is told of them through `inbox`.

    What `keeper` knows of a model is known to the engine before the model serves.
    Call it once the engine reads the inbox: messages that wait there would keep evicted models in memory.
    """

    def send(message: Callable[[Engine], object]) -> None:
        inbox.put(message)
        engine.wake.set()

    def wait_until_dropped() -> None:
        read = threading.Event()
        send(lambda _: read.set())
        read.wait(RELEASE_TIMEOUT_S)

    def warm(model: LoadedModel, in_use: Collection[nn.Module]) -> None:
        compile_networks(model, in_use)
        warm_model(model, in_use)
        keeper.restore(model, engine.admission)

    manager.on_load = lambda model: send(lambda engine: engine.add_model(model))
    manager.on_evict = lambda name: send(lambda engine: engine.remove_model(name))
    manager.wait_until_dropped = wait_until_dropped
    manager.warm = warm


def acquire_model(
    manager: DiffusionModelManager, name: str, send: Callable[[Callable[[Engine], object]], object]
) -> LoadedModel:
    """Acquires a model on the calling thread. Raises EngineError; a lost device ends the engine, too."""
    try:
        with convert_device_errors():
            return manager.acquire(name)
    except EngineError:
        raise
    except DeviceLost as error:
        lost = error

        def end(_: Engine) -> None:
            raise lost

        send(end)
        raise EngineLost("the device was lost while the model was loaded") from error
    except Exception as error:
        log.exception("model %s could not be loaded", name)
        raise ModelLoadError(f"model {name!r} could not be loaded") from error


def warm_model(model: LoadedModel, in_use: Collection[nn.Module]) -> None:
    """Calls every network of `model` once, so that its first request does not wait for kernels to be loaded.

    For models that load while an engine serves: this runs on the loading thread, so the engine's loop goes on. Networks
    `in_use` by other models are warm already, and not called: another thread may be inside them. If the device is too
    full the model is served all the same, and its first calls take longer.
    """
    try:
        _call_networks(model, in_use)
        return
    except Exception as error:
        raise_if_sticky(error)
        if not is_out_of_memory(error):
            raise ModelLoadError(f"model {model.spec.name!r}: its warm-up picture could not be made") from error
        log.warning("model %s is not warmed up: there is no memory for it now", model.spec.name)
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


@torch.inference_mode()
def _call_networks(model: LoadedModel, in_use: Collection[nn.Module]) -> None:
    if not any(network in in_use for network in model.prompt_encoder.text_encoders):
        model.prompt_encoder.encode("warm-up", 0, "prompt")
    inputs = sample_inputs(model.unet, _ROWS, model.device, model.dtype)
    latents: torch.Tensor = model.unet(**inputs)[0]
    if model.vae not in in_use:
        decode_latents(model, latents[:1])
    size = model.spec.native_size
    for net in model.controlnets.values():
        if net.network not in in_use:
            hint = net.embed(np.full((size, size, 3), 128, dtype=np.uint8)).expand(_ROWS, -1, -1, -1)
            context = torch.zeros((_ROWS, 77, context_width(net.network)), device=model.device, dtype=model.dtype)
            own = {"sample": inputs["sample"][:, : model.channels], "encoder_hidden_states": context}
            own |= sample_conditions(net.network, _ROWS, model.device, model.dtype)
            net.network(**inputs | own, controlnet_cond=hint)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
