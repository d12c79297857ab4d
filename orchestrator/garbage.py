"""What the store holds that no result needs: folders of attempts that were superseded."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.store import resolve

if TYPE_CHECKING:
    from db.folders import AttemptFolder

KEPT_CHECKPOINTS = 2
"""Of a job that is not done: the furthest, and one more in case that one is unsound."""


class Garbage(NamedTuple):
    """Something that can be removed."""

    path: Path
    size_bytes: int
    why: str


def find_garbage(
    store: Path, attempts: "list[AttemptFolder]", *, older_than_s: float
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
        candidates = _superseded(store, tries) if tries[0].job_done else _behind(store, tries)
        for path, why in candidates:
            inside = path.relative_to(store).as_posix()
            assert not any(each == inside or each.startswith(f"{inside}/") for each in needed)
            size_bytes, written_at = _stat(path)
            if time.time() - written_at >= older_than_s:
                found.append(Garbage(path, size_bytes, why))
    return found


def remove(garbage: list[Garbage]) -> int:
    """Remove it; returns the bytes that are free again."""
    for each in garbage:
        shutil.rmtree(each.path)
    return sum(each.size_bytes for each in garbage)


def _superseded(store: Path, tries: "list[AttemptFolder]") -> list[tuple[Path, str]]:
    accepted = {attempt.folder for attempt in tries if attempt.accepted}
    return [
        (path, f"another attempt at {attempt.name} was accepted")
        for attempt in tries
        if attempt.folder not in accepted and (path := resolve(store, attempt.folder)).is_dir()
    ]


def _behind(store: Path, tries: "list[AttemptFolder]") -> list[tuple[Path, str]]:
    steps = [
        (int(path.name.removeprefix("step-")), path)
        for attempt in tries
        for path in resolve(store, attempt.folder).glob("checkpoints/step-*")
        if path.name.removeprefix("step-").isdigit()
    ]
    why = f"{tries[0].name} goes on from a later checkpoint"
    return [(path, why) for _, path in sorted(steps, reverse=True)[KEPT_CHECKPOINTS:]]


def _stat(folder: Path) -> tuple[int, float]:
    """Bytes below a folder and when something in it was written last."""
    stats = [path.stat() for path in (folder, *folder.rglob("*"))]
    return sum(stat.st_size for stat in stats), max(stat.st_mtime for stat in stats)
