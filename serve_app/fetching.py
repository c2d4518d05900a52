"""Brings the files of all models that a configuration serves to this machine, before anything is started."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from deployments.annotators.models import fetch_annotator
from deployments.engine.errors import ModelLoadError
from deployments.engine.models import fetch_model
from deployments.engine.parts import pick_dtype
from serve_app.config import AppConfig

FIRST_PAUSE_S = 10.0

Say = Callable[[str], None]


def fetch(config: AppConfig, attempts: int, say: Say, sleep: Callable[[float], None] = time.sleep) -> None:
    """Into the hub's cache (`HF_HUB_CACHE`); what is there already is not fetched again.

    A model that cannot be had is tried `attempts` times, with pauses that double. Raises ModelLoadError.
    """
    for name, bring in _everything(config):
        for attempt in range(attempts):
            try:
                bring()
                break
            except ModelLoadError as error:
                if attempt + 1 == attempts:
                    raise
                pause = FIRST_PAUSE_S * 2**attempt
                say(f"{error.message}; again in {pause:g} s")
                sleep(pause)
        say(f"{name} is here")


def _everything(config: AppConfig) -> Iterator[tuple[str, Callable[[], None]]]:
    for deployment in config.deployments:
        # Weights in the precision that the deployment runs in; it need not run here, nor this machine have a GPU.
        device = torch.device("cuda" if deployment.num_gpus else "cpu")
        dtype = pick_dtype(deployment.dtype, device)
        for spec in config.specs_of(deployment):
            yield f"model {spec.name!r}", partial(fetch_model, spec, dtype)
    for kind, annotator in config.annotators.specs().items():
        yield f"annotator {kind!r}", partial(fetch_annotator, kind, annotator)
