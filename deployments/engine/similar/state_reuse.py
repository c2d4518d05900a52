"""Lets images begin where those of near prompts were (Agarwal et al., NIRVANA, 2024, section 3)."""

import hashlib
import json
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import torch
from torch import Tensor

from deployments.engine.device.errors import raise_if_sticky
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.params import SERVICE_FIELDS
from deployments.engine.protocol.request import Request
from deployments.engine.row import Row
from deployments.engine.similar.saved_states import Neighbour, SavedState, SavedStates, Vector

log = logging.getLogger(__name__)

SAVED_SHARE: Final = 0.4
"""The share of an image's evaluations after which its state is saved: what others save that continue it."""

NOT_THE_STATE: Final = SERVICE_FIELDS | {
    # What the vector stands for.
    "prompt",
    "style_preset",
    "template",
    "template_values",
    # The noise that an image began from is what it takes over.
    "seed",
    "num_images",
    # What becomes of a finished image.
    "output_format",
    "output_quality",
    "output_size",
    "output_fit",
    "ad_format",
    "metadata",
    "local_contrast",
    "contrast",
    "sharpen",
}
"""Parameters that may differ between an image and the one whose state it continues."""


class StateReuse:
    """Saves the states of images whose requests ask for it, and finds states that others may continue.

    Nobody continues what was made for another tenant, with another model, other LoRAs or embeddings, at another size,
    or with other settings than the prompt, the seed and what becomes of a finished image. May be used from several
    threads.
    """

    def __init__(self, max_bytes: int, max_distance: float) -> None:
        """With `max_bytes` 0 it is off. Prompts are near up to the cosine distance `max_distance`."""
        self.is_on = max_bytes > 0
        self.states = SavedStates(max_bytes)
        self._max_distance = max_distance
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="save-states")

    def check(self, request: Request) -> None:
        """Raises InvalidParameter for a request that asks for this where it is off."""
        if request.params.cache == "similar" and not self.is_on:
            raise InvalidParameter("cache", "`similar` is switched off on this server")

    def find(self, request: Request, embedding: Tensor) -> dict[int, Neighbour]:
        """Returns what images of `request` continue, by their indices: each another state, the first ones the nearest.

        `embedding` [tokens, d] is its prompt's.
        """
        if request.params.cache != "similar":
            return {}
        found = self.states.find(
            kind_of(request), vector_of(embedding), self._max_distance, most=request.params.num_images
        )
        return dict(enumerate(found))

    def save(self, rows: Iterable[Row]) -> None:
        """Saves the states of those `rows` that are as far as it takes, and continue nothing themselves.

        Not of those whose requests had begun before all states were forgotten.
        """
        for row in rows:
            if row.request.params.cache != "similar" or row.first_step or row.slot is None:
                continue
            if row.step == saved_step(len(row.schedule)):
                # A copy on the device, in the order of its work; only the other thread waits for it.
                state = row.slot.arena.states[row.slot.index].clone()
                self._threads.submit(self._keep, kind_of(row.request), row.prompt.embedding, row.step, state, row.epoch)

    def close(self) -> None:
        """Ends the thread."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _keep(self, kind: str, embedding: Tensor, step: int, state: Tensor, epoch: int) -> None:
        try:
            state = state.to("cpu")
            if bool(torch.isfinite(state).all()):
                self.states.add(kind, SavedState(vector_of(embedding), step, state), epoch)
        except Exception as error:
            raise_if_sticky(error)
            log.exception("the state of an image could not be saved")


def saved_step(evaluations: int) -> int:
    """Returns after how many of an image's `evaluations` its state is saved; 0 for none."""
    return round(SAVED_SHARE * evaluations)


def kind_of(request: Request) -> str:
    """Returns what two requests must have in common for one to continue the other's states, as a SHA-256 in hex.

    A digest, because it may leave this process, and has the tenant and a prompt in it.
    """
    params = request.params.model_dump(mode="json", exclude=set(NOT_THE_STATE))
    loras = [[*use.file.identity, use.scale] for use in request.loras]
    embeddings = [list(file.identity) for file in request.embeddings]
    in_common = json.dumps([request.tenant, params, loras, embeddings], sort_keys=True)
    return hashlib.sha256(in_common.encode()).hexdigest()


def vector_of(embedding: Tensor) -> Vector:
    """Returns the vector [d] of length 1 that stands for a prompt's `embedding` [tokens, d]: the mean of its tokens."""
    vector = embedding.float().mean(dim=0).cpu().numpy()
    unit: Vector = vector / np.linalg.norm(vector)
    return unit
