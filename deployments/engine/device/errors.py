"""Classifies a device's errors: out of memory, lost to this process, or neither.

CUDA keeps some errors ("sticky"): from then on every call answers with the same one, for all work, until the process
ends. Only certain cases count as such here. cuBLAS' and cuDNN's EXECUTION_FAILED, for example, can be the shadow of a
lost context or one call's own trouble; if the context is lost, the very next call says so in plain words.
"""

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import torch

T = TypeVar("T")

_FULL: Final = re.compile(
    r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory"
    # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, cudaErrorMemoryAllocation, ...
    r"|CU[A-Z]+_STATUS_(\w+_)?ALLOC(ATION)?_FAILED|cudaErrorMemoryAllocation",
    re.IGNORECASE,
)
# Whole phrases: torch closes every CUDA error, of whatever kind, with advice about "device-side assertions".
_LOST: Final = re.compile(
    r"illegal memory access|illegal instruction|misaligned address|invalid program counter|hardware stack error"
    r"|operation not supported on global/shared address space|device-side assert triggered|unspecified launch failure"
    r"|the launch timed out and was terminated|uncorrectable ECC error|uncorrectable NVLink error"
    r"|driver shutting down|context is destroyed|device unavailable|GPU is lost|fallen off the bus|DEVICE_LOST",
    re.IGNORECASE,
)

# cudaErrorMemoryAllocation, as `torch.AcceleratorError.error_code`.
_FULL_CODE: Final = 2
# cudaErrorCudartUnloading; DevicesUnavailable; ECCUncorrectable; NvlinkUncorrectable; IllegalAddress; LaunchTimeout;
# ContextIsDestroyed; Assert; HardwareStackError; IllegalInstruction; MisalignedAddress; InvalidAddressSpace; InvalidPc;
# LaunchFailure.
_LOST_CODES: Final = frozenset((4, 46, 214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719))


class DeviceLost(BaseException):
    """The device's context is gone for this process, and with it all that it held; only a new process gets another.

    No `Exception`, for the same reason as KeyboardInterrupt: it concerns the process. Every `except Exception` of the
    engine keeps one row's trouble from its neighbours, and none of them may swallow this.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True if the device, or the machine, had no memory left: less at once may still fit."""
    return any(_is_full(each) for each in _chain(error))


def is_sticky(error: BaseException) -> bool:
    """Returns True if every further call on the device will fail."""
    return any(_is_lost(each) for each in _chain(error))


def raise_if_sticky(error: BaseException) -> None:
    """Raises DeviceLost for a sticky error. The first line of every handler that would keep an error from spreading."""
    if isinstance(error, DeviceLost):
        raise error
    if is_sticky(error):
        raise DeviceLost("the device cannot be used any more") from error


def call_again_if_full(call: Callable[[], T], release: Callable[[], object]) -> T:
    """Returns the answer of `call`; if it runs out of memory, of a second call, after `release` has returned what is
    cached to the device. For what cannot be made smaller, and whose loss would cost all that was done before.
    """
    try:
        return call()
    except Exception as error:
        raise_if_sticky(error)
        if not is_out_of_memory(error):
            raise
    # Outside the handler: the traceback would keep the failed call's tensors alive.
    release()
    return call()


@contextmanager
def convert_device_errors() -> Iterator[None]:
    """Turns every sticky error that leaves the context into DeviceLost. All device calls of our threads run inside one:
    errors of a kernel show at any later call, also at one that only waits, copies or frees.
    """
    try:
        yield
    except Exception as error:
        raise_if_sticky(error)
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields the error and its causes: compilers wrap what a device has raised."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_full(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # What mapping a file of weights raises.
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    # Two allocators raise a bare RuntimeError, which only its message tells.
    return isinstance(error, RuntimeError) and (_code(error) == _FULL_CODE or bool(_FULL.search(str(error))))


def _is_lost(error: BaseException) -> bool:
    if isinstance(error, DeviceLost):
        return True
    if not isinstance(error, RuntimeError) or _is_full(error):
        return False
    return _code(error) in _LOST_CODES or bool(_LOST.search(str(error)))


def _code(error: RuntimeError) -> int | None:
    """Returns CUDA's own error code, which torch gives if the error comes from CUDA's runtime itself."""
    return getattr(error, "error_code", None) if isinstance(error, torch.AcceleratorError) else None
