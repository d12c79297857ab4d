"""Failure classes: decided where the failure happens, while the exception still has its type.

CONFIG and DATA are the user's, OOM_GPU, OOM_HOST and NAN the run's, HANG, PREEMPTED, NODE and
INFRA the machines', CANCELLED somebody's wish, UNKNOWN the rest. How often each may be retried
stands in `db.states`.
"""

import errno

from xsweep import XsweepError

_INFRA_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE}

_LOST_PEER = ("gloo/transport", "Connection closed by peer", "NCCL", "DistBackendError")
"""What an exchange between ranks says when another rank is gone."""


def classify(error: BaseException) -> tuple[str, str]:
    """The failure class of an exception and one line that says what happened."""
    reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    if isinstance(error, XsweepError):
        return error.failure, str(error)
    # Torch and pydantic are matched by name: this module is imported where neither is loaded.
    names = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    if any(name.startswith("torch") and name.endswith("OutOfMemoryError") for name in names):
        return "OOM_GPU", reason
    if any(sign in reason for sign in _LOST_PEER):
        return "NODE", reason
    # The CPU's allocator has no exception of its own.
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in reason:
        return "OOM_HOST", reason
    if "pydantic_core._pydantic_core.ValidationError" in names or isinstance(error, ImportError):
        return "CONFIG", reason
    if isinstance(error, OSError) and error.errno in _INFRA_ERRNOS:
        return "INFRA", reason
    return "UNKNOWN", reason
