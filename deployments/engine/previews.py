"""Cheap looks at images in the making."""

import logging
from collections.abc import Iterator, Sequence

from torch import Tensor

from deployments.engine.denoise import StepResult
from deployments.engine.latents import predicted_original
from deployments.engine.models import LoadedModel
from deployments.engine.row import Row

log = logging.getLogger(__name__)


def previews(model: LoadedModel, rows: Sequence[Row], result: StepResult) -> Iterator[tuple[Row, Tensor]]:
    """The rows of a step that are due a preview, each with the clean latents [C, h, w] that it points to.

    None for a checkpoint whose scheduler has no such training schedule.
    """
    if model.alphas_cumprod is None:
        return
    for row, scaled, out in zip(rows, result.scaled, result.out, strict=True):
        if row.previews_now():
            timestep = float(row.schedule.timesteps[row.step - 1])
            try:
                yield row, predicted_original(scaled, out, timestep, model.alphas_cumprod, model.prediction_type)
            except Exception:
                log.exception("a preview is left out")
