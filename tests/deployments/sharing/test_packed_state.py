"""A state comes back as it was, or not at all."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from deployments.engine.sampling.latents import STATE_SLOTS
from deployments.engine.similar.saved_states import SavedState
from deployments.sharing.packed_state import BadState, pack, unpack
from deployments.signing.signed import sign
from tests.deployments.sharing.conftest import KIND, saved

KEY = b"a key of some length, as it should be"
HEADER = {"kind": KIND, "step": 3, "shape": [STATE_SLOTS, 4, 2, 2]}
VECTOR = np.array([1, 0], dtype="<f4").tobytes()
STATE = bytes(4 * STATE_SLOTS * 4 * 2 * 2)


def test_a_state_comes_back_to_the_bit() -> None:
    state = SavedState(saved(angle=0.3).vector, 5, torch.randn(STATE_SLOTS, 4, 8, 6))
    kind, back = unpack("place", pack("place", KIND, state, KEY), KEY)
    assert (kind, back.step) == (KIND, 5)
    assert back.vector.tobytes() == state.vector.tobytes()
    assert torch.equal(back.state, state.state)
    # Rows copy it into the device's memory; it must be whole memory of its own.
    assert back.state.is_contiguous()
    assert back.bytes == state.bytes


def test_another_place_another_key_and_every_changed_byte_are_noticed() -> None:
    data = pack("place", KIND, saved(side=1), KEY)
    for place, forged, key in (("other", data, KEY), ("place", data, b"other"), ("place", data[:-1], KEY)):
        with pytest.raises(BadState):
            unpack(place, forged, key)
    for position in range(len(data)):
        forged_bytes = bytearray(data)
        forged_bytes[position] ^= 1
        with pytest.raises(BadState):
            unpack("place", bytes(forged_bytes), KEY)


def floats(*values: float) -> bytes:
    return np.array(values, dtype="<f4").tobytes()


@pytest.mark.parametrize(
    ("header", "files"),
    [
        ({}, [VECTOR]),
        ({}, [VECTOR, STATE, b""]),
        ({}, [VECTOR, STATE[:-1]]),
        ({}, [VECTOR, STATE + bytes(4)]),
        ({}, [VECTOR[:-1], STATE]),
        ({}, [b"", STATE]),
        ({}, [floats(2, 0), STATE]),
        ({}, [floats(float("nan"), 0), STATE]),
        ({}, [VECTOR, floats(float("inf")) + STATE[4:]]),
        ({"kind": "../x"}, [VECTOR, STATE]),
        ({"kind": KIND + "\n"}, [VECTOR, STATE]),
        ({"step": 0}, [VECTOR, STATE]),
        ({"step": 10**6}, [VECTOR, STATE]),
        ({"step": "3"}, [VECTOR, STATE]),
        ({"shape": [STATE_SLOTS, 4, 4]}, [VECTOR, STATE]),
        ({"shape": [STATE_SLOTS - 1, 4, 2, 2]}, [VECTOR, STATE]),
        ({"shape": [STATE_SLOTS, 4, -2, -2]}, [VECTOR, STATE]),
        ({"shape": [STATE_SLOTS, 4, 10**9, 10**9]}, [VECTOR, STATE]),
        ({"more": 1}, [VECTOR, STATE]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else str(list(map(len, value))),
)
def test_what_is_signed_and_makes_no_sense_is_refused(header: dict[str, Any], files: Sequence[bytes]) -> None:
    """Ours, by the signature; but perhaps another version's."""
    assert unpack("place", sign("place", HEADER, [VECTOR, STATE], KEY), KEY)
    with pytest.raises(BadState):
        unpack("place", sign("place", HEADER | header, files, KEY), KEY)
