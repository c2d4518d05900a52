"""diffusers' own pipelines as the peers' servers run them: one call for requests that are alike."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.card import silence_libraries
from bench.engine.contenders import Pipelines
from bench.engine.workload import like
from bench.online.messages import png_of
from bench.online.traffic import spec
from deployments.engine.models.loaded_model import load_model
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.request import Request

MOST: int = 8
"""Requests of one batch, at most: sixteen rows of the UNet where they are guided, as many as the engine has."""

WAIT_S: float = 0.05
"""For which a batch waits for more: a twentieth of what a picture takes, so it costs next to nothing."""


class LikePipelines:
    """The pipelines around one copy of the weights, with a thread for each core. One call at a time."""

    def __init__(self) -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        silence_libraries()
        model = load_model(spec(), torch.device("cpu"), torch.float32)
        self._pipelines = Pipelines(Path(spec().source), model)

    def images(self, requests: Sequence[Request]) -> list[ImageArray]:
        """Returns the images [H, W, 3] of requests that are alike, made in one call."""
        return self._pipelines.images(requests)

    def files(self, requests: Sequence[Request]) -> list[bytes]:
        """Returns the PNG files of any requests, in their order: one call for each group of like ones."""
        made: dict[int, bytes] = {}
        for group in like(requests):
            images = self._pipelines.images([requests[index] for index in group])
            made |= {index: png_of(image) for index, image in zip(group, images, strict=True)}
        return [made[index] for index in range(len(requests))]
