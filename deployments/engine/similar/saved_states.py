"""Keeps the states that images had early, and finds those of near prompts."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class SavedState:
    """What an image was after `step` evaluations. `vector` [d] is its prompt's, of length 1.

    `state` is [STATE_SLOTS, C, h, w] in fp32 and in main memory, as in `sampling/latents.py`: with it, an image goes on
    as if it had never been interrupted.
    """

    vector: Vector
    step: int
    state: Tensor = field(repr=False)

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return self.vector.nbytes + self.state.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Neighbour:
    """A saved state, and the cosine distance of its prompt: 0 for the same one."""

    saved: SavedState
    distance: float


class SavedStates:
    """Keeps the latest states, up to `max_bytes` of them, by kind: only those of one kind may take one another's place.

    An exact index: every vector of a kind is compared. May be used from several threads. `epoch` counts how often they
    were forgotten: what an image had before is not kept after.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._listener: Callable[[str, SavedState], object] = _ignore
        self._kinds: OrderedDict[SavedState, str] = OrderedDict()  # the one that was used longest ago first
        self._states: dict[str, dict[SavedState, None]] = {}
        self._vectors: dict[str, Vector] = {}
        self._lock = threading.Lock()
        self.bytes = 0
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._kinds)

    def tell(self, listener: Callable[[str, SavedState], object]) -> None:
        """Calls `listener` from now on with what is saved here, its kind first, on the thread that saves it.

        It must not wait: nobody else can use the states meanwhile.
        """
        self._listener = listener

    def add(self, kind: str, saved: SavedState, epoch: int | None = None) -> None:
        """Keeps a state that was saved here; those that were used longest ago leave for it.

        One of an image that had begun in an earlier `epoch` is not kept.
        """
        with self._lock:
            if epoch in (None, self.epoch):
                self._keep(kind, saved)
                # Inside the lock: what the listener hears comes before `clear`, or not at all.
                self._listener(kind, saved)

    def take_over(self, kind: str, saved: SavedState) -> None:
        """Keeps a state that was saved elsewhere: the listener knows it."""
        with self._lock:
            self._keep(kind, saved)

    def find(self, kind: str, vector: Vector, max_distance: float, most: int) -> list[Neighbour]:
        """Returns the nearest states of a kind, `most` at most, none farther than `max_distance`; the nearest first."""
        with self._lock:
            if kind not in self._states:
                return []
            states = list(self._states[kind])
            if kind not in self._vectors:
                self._vectors[kind] = np.stack([saved.vector for saved in states])
            distances = np.maximum(0.0, 1.0 - self._vectors[kind] @ vector)
            nearest = [i for i in np.argsort(distances, kind="stable")[:most] if distances[i] <= max_distance]
            for i in reversed(nearest):
                self._kinds.move_to_end(states[i])
            return [Neighbour(states[i], float(distances[i])) for i in nearest]

    def clear(self) -> None:
        """Forgets all states, and those to come of images that have begun. Images that already have one go on."""
        with self._lock:
            self.epoch += 1
            self._kinds.clear()
            self._states.clear()
            self._vectors.clear()
            self.bytes = 0

    def _keep(self, kind: str, saved: SavedState) -> None:
        self._kinds[saved] = kind
        self._states.setdefault(kind, {})[saved] = None
        self._vectors.pop(kind, None)
        self.bytes += saved.bytes
        while self.bytes > self.max_bytes:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        saved, kind = self._kinds.popitem(last=False)
        self.bytes -= saved.bytes
        del self._states[kind][saved]
        self._vectors.pop(kind, None)
        if not self._states[kind]:
            del self._states[kind]


def _ignore(kind: str, saved: SavedState) -> None:
    """Hears nothing."""
