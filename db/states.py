"""The life of a job: its states, the moves between them, and how often each failure is retried."""

import random
from enum import StrEnum


class State(StrEnum):
    """Where a job stands. Done, failed, skipped and cancelled are the ends of the way."""

    WAITING = "waiting"  # for parents whose results are missing
    READY = "ready"  # may be claimed (from `retry_at` on)
    RUNNING = "running"  # held by the one live attempt
    DONE = "done"  # has an accepted result, for ever
    FAILED = "failed"  # for good: its failure's budget is spent
    SKIPPED = "skipped"  # an ancestor failed or was cancelled, or its column of the grid is stopped
    CANCELLED = "cancelled"  # by a person


OPEN = (State.WAITING, State.READY, State.RUNNING)
BROKEN = (State.FAILED, State.SKIPPED, State.CANCELLED)

RETRIES: dict[str, int | None] = {
    "CONFIG": 0,
    "DATA": 0,
    "NAN": 0,
    "CANCELLED": 0,
    "HANG": 1,
    "UNKNOWN": 2,
    "OOM_HOST": 2,
    "OOM_GPU": 4,
    "INFRA": 5,
    "NODE": 8,
    "PREEMPTED": None,
}
"""How many attempts of one job may end in a failure class and still be tried again; None is free.

What a second try cannot change has none. OOM_GPU has one for each halving of the micro-batch from
16,384 tokens to 1,024. NODE also counts leases that ran out: most are nobody's fault, but a job
that takes its machine down each time must stop some day.
"""

BACKOFF_S = {"OOM_GPU": 0.0, "PREEMPTED": 0.0, "NODE": 0.0}
"""Waits before the first retry where they differ from `FIRST_WAIT_S`: new conditions, no wait."""
FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 600.0


def backoff_s(failure: str, failures: int) -> float:
    """Seconds until the next try after the n-th failure (n >= 1) of one class.

    Doubles from `FIRST_WAIT_S` to `LONGEST_WAIT_S`; jitter between half and the whole keeps jobs
    that failed together from coming back together: the third INFRA waits 10 to 20 s.
    """
    wait = min(BACKOFF_S.get(failure, FIRST_WAIT_S) * 2 ** (failures - 1), LONGEST_WAIT_S)
    return wait * random.uniform(0.5, 1.0)  # noqa: S311  (spreads load, guards nothing)
