"""What this machine's CPU can do; cheap to import (no torch)."""

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
