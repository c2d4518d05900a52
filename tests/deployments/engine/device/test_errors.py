"""Which errors end a request, which ask for less at once, and which end the process. Texts as torch 2.11 to 2.13 has
them; the kinds that need no GPU are provoked for real."""

import pytest
import torch

from deployments.engine.device.errors import DeviceLost, is_out_of_memory, is_sticky, raise_if_sticky
from deployments.engine.protocol.errors import GenerationFailed

HINT = (
    "\nSearch for `cudaError' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more "
    "information.\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below "
    "might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nDevice-side assertion tracking was "
    "not enabled by user.\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


def accelerator(text: str, code: int | None = None) -> RuntimeError:
    """As torch raises it where CUDA's runtime fails: with CUDA's words, and with its number since 2.9."""
    error = torch.AcceleratorError(f"CUDA error: {text}{HINT}")
    if code is not None:
        vars(error)["error_code"] = code
    return error


def chain_error(cause: BaseException) -> Exception:
    """As a compiler wraps what it has met."""
    error = RuntimeError("backend='inductor' raised")
    error.__cause__ = cause
    return error


STICKY = [
    accelerator("an illegal memory access was encountered", 700),
    accelerator("an illegal memory access was encountered"),
    accelerator("device-side assert triggered", 710),
    accelerator("unspecified launch failure", 719),
    accelerator("uncorrectable ECC error encountered", 214),
    accelerator("misaligned address"),
    accelerator("an illegal instruction was encountered"),
    accelerator("hardware stack error"),
    accelerator("invalid program counter"),
    accelerator("the launch timed out and was terminated"),
    accelerator("uncorrectable NVLink error detected during the execution"),
    accelerator("driver shutting down", 4),
    accelerator("in words of another language", 716),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)"),
    DeviceLost("gone"),
    chain_error(accelerator("an illegal memory access was encountered", 700)),
]

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.80 GiB"),
    torch.cuda.OutOfMemoryError("HIP out of memory."),
    accelerator("out of memory", 2),
    accelerator("in words of another language", 2),
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8000000000 bytes."),
    chain_error(torch.OutOfMemoryError("CUDA out of memory.")),
]

NEITHER = [
    accelerator("invalid argument", 1),
    accelerator("invalid configuration argument", 9),
    accelerator("no kernel image is available for execution on the device", 209),
    accelerator("operation not permitted when stream is capturing", 900),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("Expected all tensors to be on the same device"),
    ValueError("an illegal memory access was encountered"),
    OSError(28, "No space left on device"),
    GenerationFailed("CUDA out of memory is not what a caller's error says"),
    KeyError("DEVICE_LOST"),
]


def name_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:60].splitlines()[0]


@pytest.mark.parametrize("error", STICKY, ids=name_of)
def test_a_context_that_is_gone_is_sticky_and_not_full(error: BaseException) -> None:
    assert is_sticky(error)
    assert not is_out_of_memory(error)
    with pytest.raises(DeviceLost):
        raise_if_sticky(error)


@pytest.mark.parametrize("error", FULL, ids=name_of)
def test_a_full_device_is_not_lost(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert not is_sticky(error)
    raise_if_sticky(error)


@pytest.mark.parametrize("error", NEITHER, ids=name_of)
def test_one_calls_own_trouble_is_neither(error: BaseException) -> None:
    assert not is_sticky(error)
    assert not is_out_of_memory(error)


def test_the_cpus_allocator_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)


def test_no_handler_of_ordinary_errors_swallows_a_lost_device() -> None:
    assert not issubclass(DeviceLost, Exception)
