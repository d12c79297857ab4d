"""Garbage collection: find and remove folders of the store that no result needs."""

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from xsweep.orchestrator.storage.store import Store

if TYPE_CHECKING:
    from xsweep.db.results import AttemptFolder

KEPT_CHECKPOINTS = 2
"""Checkpoints that a job that is not done keeps; the second in case the furthest is damaged."""
CHECKPOINT = re.compile(r"(?P<folder>.*/checkpoints/step-(?P<step>\d+))/")


class Garbage(NamedTuple):
    """A folder of the store that can be removed."""

    folder: str
    size_bytes: int
    why: str


def find_garbage(
    store: Store, attempts: "list[AttemptFolder]", *, older_than_s: float
) -> list[Garbage]:
    """Find superseded attempts of done jobs, and all but the furthest checkpoints of other jobs.

    Never an accepted result, a running attempt, a log, or a folder that this database does not
    know; nothing that was written within `older_than_s`, since a worker that lost its controller
    may still run.
    """
    by_job: dict[str, list[AttemptFolder]] = {}
    for attempt in attempts:
        by_job.setdefault(attempt.identity, []).append(attempt)
    needed = {attempt.folder for attempt in attempts if attempt.accepted}
    garbage: list[Garbage] = []
    for of_job in by_job.values():
        if any(attempt.live for attempt in of_job):
            continue
        files = {
            f"{attempt.folder}/{name}": stat
            for attempt in of_job
            if not attempt.accepted
            for name, stat in store.listing(attempt.folder).items()
        }
        why = f"another attempt at {of_job[0].name} was accepted"
        superseded = [(attempt.folder, why) for attempt in of_job if not attempt.accepted]
        candidates = superseded if of_job[0].job_done else _checkpoints(of_job, files)
        for folder, why in candidates:
            assert not any(each == folder or each.startswith(f"{folder}/") for each in needed)
            stats = [stat for name, stat in files.items() if name.startswith(f"{folder}/")]
            if stats and time.time() - max(at for _, at in stats) >= older_than_s:
                garbage.append(Garbage(folder, sum(size for size, _ in stats), why))
    return garbage


def remove(store: Store, garbage: list[Garbage]) -> int:
    """Remove garbage; returns the bytes that were freed."""
    for each in garbage:
        store.remove(each.folder)
    return sum(each.size_bytes for each in garbage)


def _checkpoints(attempts: "list[AttemptFolder]", files: Iterable[str]) -> list[tuple[str, str]]:
    matches = filter(None, map(CHECKPOINT.match, files))
    steps = {(int(match["step"]), match["folder"]) for match in matches}
    why = f"{attempts[0].name} continues from a later checkpoint"
    return [(folder, why) for _, folder in sorted(steps, reverse=True)[KEPT_CHECKPOINTS:]]
