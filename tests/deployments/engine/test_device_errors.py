"""Errors as torch really words them."""

import pytest
import torch

from deployments.engine.device_errors import DeviceLost, is_out_of_memory, is_sticky, raise_if_sticky

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]
GONE = [
    RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    DeviceLost("it is gone"),
]
NEITHER = [RuntimeError("The size of tensor a (76) must match the size of tensor b (77)"), ValueError("out of range")]


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:30])
def test_a_full_device_is_not_a_lost_one(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert not is_sticky(error)
    raise_if_sticky(error)


@pytest.mark.parametrize("error", GONE, ids=lambda error: str(error)[:30])
def test_a_lost_device_is_not_a_full_one(error: BaseException) -> None:
    assert is_sticky(error)
    assert not is_out_of_memory(error)
    with pytest.raises(DeviceLost):
        raise_if_sticky(error)


@pytest.mark.parametrize("error", NEITHER, ids=lambda error: str(error)[:30])
def test_other_errors_are_neither(error: BaseException) -> None:
    assert not is_sticky(error)
    assert not is_out_of_memory(error)


def test_the_cpu_allocators_own_error_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
