"""Fetches the files of models to this machine, before anything is started."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

import torch

from deployments.annotators.models import fetch_annotator
from deployments.annotators.spec import AnnotatorSpecs
from deployments.engine.models.components import pick_dtype
from deployments.engine.models.hub import locate_file
from deployments.engine.models.part_location import fetch_model
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import ModelSpec, UpscalerSpec
from deployments.loras.catalogue import LoraSpec

FIRST_PAUSE_S: Final = 10.0

Hosted = tuple[ModelSpec, str, str]
"""A model; the type of device (`cpu`, `cuda`) and the dtype it will run in, which decide the precision of its files."""


def fetch(
    models: Iterable[Hosted],
    annotators: AnnotatorSpecs,
    attempts: int,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    upscalers: Iterable[UpscalerSpec] = (),
    loras: Iterable[LoraSpec] = (),
) -> None:
    """Fetches files into the hub's cache (`HF_HUB_CACHE`), except those already there. No device is needed.

    Every download is tried `attempts` times, with pauses that double. Raises ModelLoadError.
    """
    for name, download in _list_downloads(models, annotators, upscalers, loras):
        for attempt in range(1, attempts + 1):
            try:
                download()
                break
            except ModelLoadError as error:
                if attempt == attempts:
                    raise
                pause = FIRST_PAUSE_S * 2 ** (attempt - 1)
                say(f"{error.message}; again in {pause:g} s")
                sleep(pause)
        say(f"{name} is here")


def _list_downloads(
    models: Iterable[Hosted],
    annotators: AnnotatorSpecs,
    upscalers: Iterable[UpscalerSpec],
    loras: Iterable[LoraSpec],
) -> Iterator[tuple[str, Callable[[], object]]]:
    for spec, device, dtype in models:
        yield f"model {spec.name!r}", partial(fetch_model, spec, pick_dtype(dtype, torch.device(device)))
    for kind, annotator in annotators.items():
        yield f"annotator {kind!r}", partial(fetch_annotator, kind, annotator)
    rows: list[UpscalerSpec | LoraSpec] = [*upscalers, *loras]
    for row in rows:
        title = f"{'LoRA' if isinstance(row, LoraSpec) else 'upscaler'} {row.name!r}"
        yield title, partial(locate_file, title, row.source, row.revision, row.file)
