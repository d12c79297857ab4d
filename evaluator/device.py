"""What this machine's CPU can do; cheap to import (no torch).

When memory ran out: on a GPU PyTorch has an error of its own for it, on a CPU it has not.
"""

import ctypes
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def bf16_units() -> tuple[str, ...]:
    """The instruction sets that multiply bf16 numbers, as Linux names them; empty without any."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ()
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return tuple(sorted({"avx512_bf16", "amx_bf16"}.intersection(flags)))


OF_A_CPU = ("DefaultCPUAllocator", "could not create a primitive")
"""What PyTorch's allocator says, and oneDNN where it gets no memory for a product's code."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no memory left, or a CPU, as its libraries say it."""
    import torch

    is_named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_named or any(words in str(error) for words in OF_A_CPU)


def release_freed_memory() -> None:
    """Gives back what was freed but kept for the next pass, so that other sizes find room."""
    import torch

    torch.cuda.empty_cache()
    with suppress(AttributeError, OSError, TypeError):  # where there is no glibc
        ctypes.CDLL(None).malloc_trim(0)
