"""How much of a sweep is done, and how long the rest will take."""

from typing import TYPE_CHECKING

from xsweep.db.schema import OPEN
from xsweep.orchestrator.formatting import duration

if TYPE_CHECKING:
    from xsweep.db.status import RunningJob, Summary, SweepStatus


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
    """Seconds until a sweep is done: its planned seconds at the measured pace; None if unknown.

    Work left is shared by the jobs that run now, but the sweep ends no earlier than the longest
    of these: 120 planned seconds of trainings wait, results took 1.5 times as long as planned,
    two trainings run, with 30 s and 60 s to go: max(60, (120 * 1.5 + 30 + 60) / 2) = 135 s.
    """
    left_s, longest_s = 0.0, 0.0
    for kind, planned_s in sweep.cost_s.items():
        running = [job for job in found.running if job.kind == kind]
        running = running[: sweep.counts[kind].get("running", 0)]
        pace = _pace(kind, planned_s.get("running", 0.0), running, found)
        if pace is None and _open_s(planned_s):
            return None
        left_s += (planned_s.get("waiting", 0.0) + planned_s.get("ready", 0.0)) * (pace or 0.0)
        for job in running:
            usual_s = planned_s.get("running", 0.0) * (pace or 0.0) / len(running)
            job_s = _projected_s(job) or usual_s
            left_s += (job_left_s := max(0.0, job_s - job.since_s))
            longest_s = max(longest_s, job_left_s)
    running_jobs = sum(states.get("running", 0) for states in sweep.counts.values())
    return max(longest_s, left_s / max(1, running_jobs))


def _open_s(planned_s: dict[str, float]) -> float:
    """Planned seconds that are not done yet."""
    return sum(planned_s.get(state, 0.0) for state in OPEN)


def _pace(
    kind: str, planned_s: float, running: "list[RunningJob]", found: "Summary"
) -> float | None:
    """Seconds that one planned second of a kind takes: of results, else of what runs, else of all.

    Other kinds tell little about this one, so they are asked last.
    """
    if kind in found.pace:
        return found.pace[kind]
    projected_s = [job_s for job in running if (job_s := _projected_s(job)) is not None]
    if projected_s and len(projected_s) == len(running) and planned_s:
        return sum(projected_s) / planned_s
    return sum(found.pace.values()) / len(found.pace) if found.pace else None


def _projected_s(job: "RunningJob") -> float | None:
    """How long a running job will take in all, from its progress; None before there is any."""
    progress = job.progress or {}
    if "left_s" in progress:  # a training leaves out its start, which comes once
        return job.since_s + progress["left_s"]
    done = progress.get("done")
    return job.since_s * progress["total"] / done if done else None
