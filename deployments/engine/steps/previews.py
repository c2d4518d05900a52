"""Cheap looks at images in the making."""

import logging
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from deployments.engine.device.errors import raise_if_sticky
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.row import Row
from deployments.engine.sampling.latents import predicted_original
from deployments.engine.steps.denoise import StepResult

log = logging.getLogger(__name__)

SHRINK: Final = 2
"""Previews have half the picture's width and height: a quarter of the work."""


def previews(model: LoadedModel, rows: Sequence[Row], result: StepResult) -> Iterator[tuple[Row, Tensor]]:
    """The rows of a step that are due a preview, each with the clean latents [C, h, w] that it points to, shrunk.

    None for a checkpoint whose scheduler has no such training schedule. A preview that cannot be made is left out:
    nobody loses a picture by it.
    """
    if model.alphas_cumprod is None:
        return
    for row, scaled, out in zip(rows, result.scaled, result.out, strict=True):
        if row.previews_now() and (latents := _clean(model, row, scaled, out, model.alphas_cumprod)) is not None:
            yield row, latents


@torch.inference_mode()
def _clean(model: LoadedModel, row: Row, scaled: Tensor, out: Tensor, alphas_cumprod: Tensor) -> Tensor | None:
    timestep = float(row.schedule.timesteps[row.step - 1])
    try:
        clean = predicted_original(scaled, out, timestep, alphas_cumprod, model.prediction_type)
        return torch.nn.functional.avg_pool2d(clean[None], SHRINK)[0]
    except Exception as error:
        raise_if_sticky(error)
        log.exception("a preview is left out")
        return None
