"""CPU features, and out-of-memory errors of GPUs and CPUs; importing it does not load torch."""

import ctypes
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

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


def is_out_of_memory(error: BaseException) -> bool:
    """True for errors of a GPU or CPU without enough memory, also those without an own class."""
    import torch

    has_class = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return has_class or any(message in str(error) for message in CPU_OUT_OF_MEMORY)


def release_freed_memory() -> None:
    """Returns cached free memory to the device and the system, so that other sizes find room."""
    import torch

    torch.cuda.empty_cache()
    with suppress(AttributeError, OSError, TypeError):  # without glibc
        ctypes.CDLL(None).malloc_trim(0)
