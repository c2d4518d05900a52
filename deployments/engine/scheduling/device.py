"""The memory of a device, as scheduling sees it: what there is, what is held, and what a piece of work took at most."""

from contextlib import AbstractContextManager
from typing import Protocol


class Meter:
    """`peak`: the most bytes that lived at once of those that a piece of work made."""

    def __init__(self) -> None:
        self.peak = 0


class DeviceMemory(Protocol):
    """Where tensors live."""

    @property
    def budget(self) -> int | None:
        """All the bytes that this process may use for weights and work; None where nobody counts them."""

    @property
    def always_metered(self) -> bool:
        """Whether metering is free, so that every call can be."""

    def held(self, counted: int) -> int:
        """The bytes in use between calls; `counted` is what the engine itself can name."""

    def metered(self) -> AbstractContextManager[Meter]:
        """Measures what is done inside it."""

    def release(self) -> None:
        """Gives back what is cached and not used."""
