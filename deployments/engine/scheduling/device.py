"""The memory of a device as scheduling sees it: the budget, what is held, and the peak of a piece of work."""

from contextlib import AbstractContextManager
from typing import Protocol


class Meter:
    """Holds `peak`: the most bytes that were alive at once of those that the metered work allocated."""

    def __init__(self) -> None:
        self.peak = 0


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
