"""Memory on a CPU: what a step frees is kept for the next one."""

import ctypes
import resource

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's `mallopt`, https://man7.org/linux/man-pages/man3/mallopt.3.html."""


def keep_freed_memory() -> bool:
    """Tells glibc's allocator not to give large blocks back; False where it was not told.

    Otherwise every activation above 32 MB is mapped afresh in each step, and the kernel clears its
    pages first. Both settings belong together: a trim threshold alone makes every block above
    128 KB a mapping of its own, and a step of MiniLM-L6 takes 1.7 times as long. There may be no
    glibc; and where the address space is limited what is kept for one size is lost to others.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
