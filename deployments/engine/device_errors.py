"""Which of torch's errors mean that the device is full, and which that it is gone for this process."""

from typing import Final

import torch

_NO_MEMORY: Final = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

_GONE: Final = (
    "illegal memory access",
    "device-side assert",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "hardware stack error",
    "CUDA driver shutting down",
    "device lost",
    "GPU has fallen off the bus",
)


class DeviceLost(Exception):
    """The device's context is broken: nothing works on it any more, and only a new process gets another one."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, had no memory left; smaller work may still fit."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def is_sticky(error: BaseException) -> bool:
    """Whether every further call would fail, too. Once such an error is there, CUDA answers all calls with it."""
    return isinstance(error, DeviceLost) or (
        isinstance(error, RuntimeError) and not is_out_of_memory(error) and any(text in str(error) for text in _GONE)
    )


def raise_if_sticky(error: BaseException) -> None:
    """Raises DeviceLost for such an error."""
    if is_sticky(error):
        raise DeviceLost("the device cannot be used any more") from error
