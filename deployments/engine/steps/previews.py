"""Predicts cheap previews of images being made."""

import logging
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from deployments.engine.device.errors import raise_if_sticky
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.row import Row
from deployments.engine.sampling.latents import predict_original
from deployments.engine.steps.denoise import StepResult

log = logging.getLogger(__name__)

SHRINK: Final = 2
"""Previews have half the image's width and height: a quarter of the work."""


def predict_previews(model: LoadedModel, rows: Sequence[Row], result: StepResult) -> Iterator[tuple[Row, Tensor]]:
    """Yields the rows that are due a preview after a step, each with its predicted clean latents [C, h, w], shrunk.

    Yields nothing for a checkpoint whose scheduler has no such training schedule, and for a model whose images nobody
    may see unchecked. A preview that fails is left out; the
    image itself is not affected.
    """
    if model.alphas_cumprod is None or model.checkers.is_required:
        return
    for row, scaled, out in zip(rows, result.scaled, result.out, strict=True):
        if (
            row.is_preview_due()
            and (latents := _predict_clean(model, row, scaled, out, model.alphas_cumprod)) is not None
        ):
            yield row, latents


@torch.inference_mode()
def _predict_clean(model: LoadedModel, row: Row, scaled: Tensor, out: Tensor, alphas_cumprod: Tensor) -> Tensor | None:
    timestep = float(row.schedule.timesteps[row.step - 1])
    try:
        clean = predict_original(scaled, out, timestep, alphas_cumprod, model.prediction_type)
        return torch.nn.functional.avg_pool2d(clean[None], SHRINK)[0]
    except Exception as error:
        raise_if_sticky(error)
        log.exception("a preview is left out")
        return None
