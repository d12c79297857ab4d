"""CPU features, usable GPUs and out-of-memory errors; importing it does not load torch."""

import ctypes
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from xsweep.errors import SetupError, first_line

if TYPE_CHECKING:
    import torch

    from xsweep.evaluator.specs import Precision

GPU_OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "'out of memory'",
)
"""Messages of CUDA, its libraries, and NCCL (`Cuda failure 2 'out of memory'`), which have no error
of their own for it; PyTorch's allocator has one."""
CPU_OUT_OF_MEMORY = ("DefaultCPUAllocator", "could not create a primitive")
"""Messages of PyTorch's allocator, and of oneDNN without memory for a product's code."""


@cache
def _cpuinfo(field: str) -> str:
    """The first value of a field of /proc/cpuinfo; empty if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    values = (line.split(":", 1)[1].strip() for line in lines if line.startswith(field))
    return next(values, "")


def cpu_model() -> str:
    """The CPU's model name, else its architecture."""
    return _cpuinfo("model name") or platform.machine()


def has_wide_amd_units() -> bool:
    """True for AMD's CPUs that compute 512 bits at a time: Zen 5, the family 26, and later."""
    return _cpuinfo("vendor_id") == "AuthenticAMD" and int(_cpuinfo("cpu family")) >= 26


def bf16_units() -> tuple[str, ...]:
    """The instruction sets that multiply bf16 numbers, by Linux's names; empty without any."""
    return tuple(sorted({"avx512_bf16", "amx_bf16"}.intersection(_cpuinfo("flags").split())))


def choose_precision(
    precision: "Precision", device: "torch.device | str" = "cpu"
) -> "tuple[torch.dtype, str]":
    """The dtype to compute in and the reason; `auto` is bf16 if the hardware multiplies it."""
    import torch

    if precision != "auto":
        return (torch.bfloat16 if precision == "bf16" else torch.float32), "as asked"
    if torch.device(device).type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, f"{torch.cuda.get_device_name(device)} multiplies bf16"
        return torch.float32, f"{torch.cuda.get_device_name(device)} has no bf16 units"
    if units := bf16_units():
        return torch.bfloat16, f"the CPU has {' and '.join(units)}"
    return torch.float32, "the CPU has neither avx512_bf16 nor amx_bf16"


def is_out_of_memory(error: BaseException) -> bool:
    """True for errors of a GPU or CPU without enough memory, also those without an own class."""
    import torch

    has_class = isinstance(error, torch.OutOfMemoryError | MemoryError)
    messages = GPU_OUT_OF_MEMORY + CPU_OUT_OF_MEMORY
    return has_class or any(message in str(error) for message in messages)


def require_gpu() -> None:
    """Raises SetupError with the driver's words if PyTorch can use no GPU."""
    import torch

    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:  # built without CUDA; no driver, no device
        raise SetupError(
            f"this job reserved a GPU, but PyTorch {torch.__version__} can use none on "
            f"{platform.node()}: {first_line(error)}. Check nvidia-smi and PyTorch's build there"
        ) from None


def release_freed_memory() -> None:
    """Returns cached free memory to the device and the system, so that other sizes find room."""
    import torch

    torch.cuda.empty_cache()
    with suppress(AttributeError, OSError, TypeError):  # without glibc
        ctypes.CDLL(None).malloc_trim(0)
