"""A real Redis, and the threads that share states through it, quick enough for tests."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import torch

from bench.redis_server import RedisServer
from deployments.engine.sampling.latents import STATE_SLOTS
from deployments.engine.similar.saved_states import SavedState, SavedStates
from deployments.sharing import shared_log, state_sharing
from deployments.sharing.spec import SharingSpec
from deployments.sharing.state_sharing import StateSharing
from deployments.signing.secret_source import SecretSource

# It need not be secret here, only long enough and the same for everybody.
KEY = SecretSource(file=Path(__file__))
KIND, OTHER_KIND = "a" * 64, "b" * 64


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_sharing, "POLL_S", 0.02)
    monkeypatch.setattr(state_sharing, "PAUSE_S", 0.05)
    monkeypatch.setattr(shared_log, "TIMEOUT_S", 0.2)


@pytest.fixture
def join(inside: "redis.Redis", server: RedisServer, quick: None) -> Iterator[Callable[..., "Replica"]]:
    """Makes replicas that share through the server, and ends them afterwards."""
    with contextlib.ExitStack() as stack:

        def make(memory: int = 10**8, **changes: Any) -> Replica:
            return stack.enter_context(contextlib.closing(Replica(spec_at(server.url, **changes), memory)))

        yield make


class Replica:
    """A replica's states, and the thread that shares them."""

    def __init__(self, spec: SharingSpec, memory: int) -> None:
        self.states = SavedStates(memory)
        self.sharing = StateSharing(spec, self.states)

    def close(self) -> None:
        self.sharing.close()


def spec_at(url: str, **changes: Any) -> SharingSpec:
    return replace(SharingSpec(url, "test:", "f" * 64, key=KEY), **changes)


def saved(value: float = 1.0, side: int = 4, angle: float = 0.0) -> SavedState:
    """A state full of `value`, whose prompt's vector has that angle."""
    vector = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
    return SavedState(vector, 3, torch.full((STATE_SLOTS, 4, side, side), value))


def values_of(states: SavedStates, kind: str = KIND) -> list[float]:
    """What the states of a kind are full of, in order."""
    found = states.find(kind, saved().vector, 2.0, most=10**6)
    return sorted(float(each.saved.state.flatten()[0]) for each in found)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come to this in time"
        time.sleep(0.005)
