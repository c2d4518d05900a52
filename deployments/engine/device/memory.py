"""Measures a device's memory: CUDA's allocator counts; on a CPU the bytes of live tensors are counted here."""

import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deployments.engine.scheduling.device import Meter


class CudaMemory:
    """A GPU that this process has to itself, or the part of it that is free when the process starts."""

    is_metering_free = True

    def __init__(self, device: torch.device, budget: int | None = None) -> None:
        self._device = device
        self._running: list[Meter] = []
        self._lock = threading.Lock()  # of the running meters, which share the allocator's one peak
        free, _ = torch.cuda.mem_get_info(device)
        self.budget: int | None = budget or free + torch.cuda.memory_reserved(device)

    def held_bytes(self, counted: int) -> int:
        return max(counted, torch.cuda.memory_allocated(self._device))

    def unused_bytes(self) -> int:
        return max(0, torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device))

    @contextmanager
    def meter(self) -> Iterator[Meter]:
        meter = Meter()
        with self._lock:
            self._running.append(meter)
            if len(self._running) == 1:
                torch.cuda.reset_peak_memory_stats(self._device)
            else:
                for each in self._running:
                    each.is_alone = False
            before = torch.cuda.memory_allocated(self._device)
        try:
            yield meter
        finally:
            with self._lock:
                self._running.remove(meter)
                meter.peak = max(0, torch.cuda.max_memory_allocated(self._device) - before)

    def release(self) -> None:
        torch.cuda.empty_cache()


class CpuMemory:
    """A part of the machine's memory, by configuration. Metering costs some microseconds per operation."""

    is_metering_free = False

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget

    def held_bytes(self, counted: int) -> int:
        return counted

    def unused_bytes(self) -> int:
        return 0

    @contextmanager
    def meter(self) -> Iterator[Meter]:
        meter = Meter()
        with _LiveTensors() as live:
            yield meter
        meter.peak = live.peak

    def release(self) -> None:
        """Does nothing: the allocator keeps nothing."""


def memory_of(device: torch.device, budget: int | None = None) -> CudaMemory | CpuMemory:
    """Returns the memory of `device`; `budget` bounds what this process may use of it (bytes)."""
    return CudaMemory(device, budget) if device.type == "cuda" else CpuMemory(budget)


class _LiveTensors(TorchDispatchMode):
    """Tracks every storage that this thread allocates, until it is freed. A kernel's own scratch memory is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, int] = {}
        self._bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                self._track_storage(leaf.untyped_storage())
        self.peak = max(self.peak, self._bytes)
        return out

    def _track_storage(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._live:
            self._live[key] = storage.nbytes()
            self._bytes += storage.nbytes()
            weakref.finalize(storage, self._untrack_storage, key)

    def _untrack_storage(self, key: int) -> None:
        self._bytes -= self._live.pop(key)
