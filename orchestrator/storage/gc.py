"""What the store holds that no result needs: folders of attempts that were superseded."""

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from xsweep.orchestrator.storage.store import Store

if TYPE_CHECKING:
    from xsweep.db.results import AttemptFolder


KEPT_CHECKPOINTS = 2
"""Of a job that is not done: the furthest, and one more in case that one is unsound."""


CHECKPOINT = re.compile(r"(?P<folder>.*/checkpoints/step-(?P<step>\d+))/")


class Garbage(NamedTuple):
    """A folder of the store that can be removed."""

    folder: str
    size_bytes: int
    why: str


def find_garbage(
    store: Store, attempts: "list[AttemptFolder]", *, older_than_s: float
) -> list[Garbage]:
    """What can be removed without loss; nothing is.

    Never an accepted result, a live attempt, a log, or a folder that this database does not know;
    nothing that was written within `older_than_s`, since a worker that was cut off may live still.
    Removed are: all other attempts of jobs that are done, and of jobs that are not, checkpoints
    behind the furthest two.
    """
    by_job: dict[str, list[AttemptFolder]] = {}
    for attempt in attempts:
        by_job.setdefault(attempt.identity, []).append(attempt)
    needed = {attempt.folder for attempt in attempts if attempt.accepted}
    found: list[Garbage] = []
    for tries in by_job.values():
        if any(attempt.live for attempt in tries):
            continue
        files = {
            f"{attempt.folder}/{name}": stat
            for attempt in tries
            if not attempt.accepted
            for name, stat in store.listing(attempt.folder).items()
        }
        candidates = _superseded(tries) if tries[0].job_done else _behind(tries, files)
        for folder, why in candidates:
            assert not any(each == folder or each.startswith(f"{folder}/") for each in needed)
            stats = [stat for name, stat in files.items() if name.startswith(f"{folder}/")]
            if stats and time.time() - max(at for _, at in stats) >= older_than_s:
                found.append(Garbage(folder, sum(size for size, _ in stats), why))
    return found


def remove(store: Store, garbage: list[Garbage]) -> int:
    """Remove it; returns the bytes that are free again."""
    for each in garbage:
        store.remove(each.folder)
    return sum(each.size_bytes for each in garbage)


def _superseded(tries: "list[AttemptFolder]") -> list[tuple[str, str]]:
    return [
        (attempt.folder, f"another attempt at {attempt.name} was accepted")
        for attempt in tries
        if not attempt.accepted
    ]


def _behind(tries: "list[AttemptFolder]", files: Iterable[str]) -> list[tuple[str, str]]:
    """All checkpoints but the furthest, by their step."""
    steps = {
        (int(found["step"]), found["folder"]) for name in files if (found := CHECKPOINT.match(name))
    }
    why = f"{tries[0].name} goes on from a later checkpoint"
    return [(folder, why) for _, folder in sorted(steps, reverse=True)[KEPT_CHECKPOINTS:]]
