"""How much of a sweep is done, and how long the rest will take."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from db.status import Summary, SweepStatus

OPEN = ("waiting", "ready", "running")


def prospect(sweep: "SweepStatus", found: "Summary") -> str:
    """How far a sweep is, in words: `12 of 23 jobs done, about 6 min left`."""
    done, left = count(sweep, ("done",)), count(sweep, OPEN)
    if not left:
        broken = sweep.total - done
        return f"{done} jobs done, {broken} failed, skipped or cancelled" if broken else "all done"
    eta = eta_s(sweep, found)
    return f"{done} of {sweep.total} jobs done, " + (
        "time left unknown" if eta is None else f"about {duration(eta)} left"
    )


def count(sweep: "SweepStatus", states: tuple[str, ...]) -> int:
    """Jobs of a sweep that are in one of the states."""
    return sum(counts.get(state, 0) for counts in sweep.counts.values() for state in states)


def eta_s(sweep: "SweepStatus", found: "Summary") -> float | None:
    """Seconds until a sweep is done, from mean durations of its kinds of job; None if unknown.

    Work left is divided by the jobs that run now: 4 trainings left at 60 s each, of which 2 run
    for 30 s already, leave (2 * 60 + 2 * 30) / 2 = 90 s.
    """
    running = {kind: states.get("running", 0) for kind, states in sweep.counts.items()}
    left_s = 0.0
    for kind, states in sweep.counts.items():
        jobs = sum(states.get(state, 0) for state in OPEN)
        mean_s = found.mean_s.get(kind) or _projected_s(kind, found) or _any_s(found)
        if jobs and mean_s is None:
            return None
        left_s += jobs * (mean_s or 0.0)
        spent = [job.since_s for job in found.running if job.kind == kind][: running[kind]]
        left_s -= sum(min(since_s, mean_s or 0.0) for since_s in spent)
    return left_s / max(1, sum(running.values()))


def _projected_s(kind: str, found: "Summary") -> float | None:
    """How long the jobs of a kind will take, from the progress of those that run."""
    took_s = [
        job.since_s * job.progress["total"] / job.progress["done"]
        for job in found.running
        if job.kind == kind and job.progress and job.progress.get("done")
    ]
    return sum(took_s) / len(took_s) if took_s else None


def _any_s(found: "Summary") -> float | None:
    """The mean over kinds, for a kind of which nothing is known yet."""
    return sum(found.mean_s.values()) / len(found.mean_s) if found.mean_s else None


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
