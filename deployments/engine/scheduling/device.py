"""The memory of a device as scheduling sees it: the budget, what is held, and the peak of a piece of work."""

from contextlib import AbstractContextManager
from typing import Final, Protocol

from deployments.engine.stack_size import Adapted


class Meter:
    """Holds `peak`: the most bytes that were alive at once of those that the metered work allocated.

    Where it `is_alone` no more, other work was metered at the same time, and the peak says nothing of this one's.
    """

    def __init__(self) -> None:
        self.peak = 0
        self.is_alone = True


class DeviceMemory(Protocol):
    """The memory that tensors live in."""

    @property
    def budget(self) -> int | None:
        """All the bytes that this process may use for weights and work; None for no limit."""

    @property
    def is_metering_free(self) -> bool:
        """True if metering costs nothing, so that every call can be metered."""

    def held_bytes(self, counted: int) -> int:
        """Returns the bytes in use between calls; `counted` are those that the engine itself can name."""

    def unused_bytes(self) -> int:
        """Returns the bytes that this process has taken from the device and that no tensor is in; after `release` those
        that captured steps keep to themselves.
        """

    def meter(self) -> AbstractContextManager[Meter]:
        """Measures the peak of what is allocated inside the context."""

    def release(self) -> None:
        """Returns cached, unused memory to the device."""


class AdapterMemory(Protocol):
    """What requests have brought into memory beside models and rows. All methods may be called from any thread."""

    def count_bytes(self) -> int:
        """Returns the bytes of all LoRAs and IP-Adapters, and of what is prepared and has no row yet."""

    def find_prepared(self, request_id: str) -> Adapted | None:
        """Returns the prepared request of that id, with what its rows will have; None if there is none."""

    def evict_unused(self) -> None:
        """Drops what is kept and no request uses."""


class _NoAdapters:
    """No LoRAs and IP-Adapters."""

    def count_bytes(self) -> int:
        return 0

    def find_prepared(self, request_id: str) -> Adapted | None:
        return None

    def evict_unused(self) -> None:
        """Does nothing: nothing is kept."""


NO_ADAPTERS: Final = _NoAdapters()
