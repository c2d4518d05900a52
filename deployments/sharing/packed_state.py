"""A saved state as signed bytes, and back. Nothing is unpickled: a JSON header, and two arrays of fp32."""

import math
from collections.abc import Sequence
from typing import Annotated, Final

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.engine.sampling.latents import STATE_SLOTS
from deployments.engine.similar.saved_states import SavedState, Vector
from deployments.engine.steps.arena import MAX_EVALUATIONS
from deployments.signing.signed import BadSignature, sign, verify

MAX_STATE_BYTES: Final = 16 * 2**20
"""A state of 2048 x 2048 pixels, in four channels at an eighth of the side, takes half as much."""

# Little-endian, whatever the machine: this leaves it.
_FP32: Final = np.dtype("<f4")

_LENGTH_TOLERANCE: Final = 1e-3


class BadState(Exception):
    """Bytes that are not a state of ours."""


class _Header(BaseModel):
    """What is said of the two arrays: the prompt's vector [d] and the state [STATE_SLOTS, C, h, w]."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    step: Annotated[int, Field(ge=1, le=MAX_EVALUATIONS)]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=4, max_length=4)]


def pack(place: str, kind: str, saved: SavedState, key: bytes) -> bytes:
    """Returns a state of a kind as bytes, signed with `key` for that place."""
    header = _Header(kind=kind, step=saved.step, shape=list(saved.state.shape))
    arrays = (saved.vector, saved.state.numpy())
    return sign(place, header.model_dump(), [array.astype(_FP32, copy=False).tobytes() for array in arrays], key)


def unpack(place: str, data: bytes, key: bytes) -> tuple[str, SavedState]:
    """Returns a state after its kind. Raises BadState unless it was signed with `key` for that place, and is whole."""
    try:
        content, files = verify(place, data, key)
        header = _Header.model_validate(content)
    except BadSignature as error:
        raise BadState(str(error)) from None
    except ValidationError:
        raise BadState("its header makes no sense") from None
    if len(files) != 2:
        raise BadState("it has not two arrays")
    if header.shape[0] != STATE_SLOTS:
        raise BadState("it is of another sampler's form")
    vector, state = _read(files[0], [len(files[0]) // _FP32.itemsize]), _read(files[1], header.shape)
    if abs(float(np.linalg.norm(vector)) - 1.0) > _LENGTH_TOLERANCE:
        raise BadState("its prompt's vector has not the length 1")
    return header.kind, SavedState(vector, header.step, torch.from_numpy(state))


def _read(file: bytes, shape: Sequence[int]) -> Vector:
    """Returns an array of that shape, with memory of its own. Raises BadState unless it fits, and is finite."""
    if len(file) != math.prod(shape) * _FP32.itemsize:
        raise BadState("an array has not the shape that its header says")
    array: Vector = np.frombuffer(file, _FP32).reshape(shape).astype(np.float32)
    if not np.isfinite(array).all():
        raise BadState("it is not finite")
    return array
