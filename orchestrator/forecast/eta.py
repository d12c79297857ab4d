"""Progress of a sweep: the jobs that are done, and the time that the rest will take."""

from xsweep.db.schema import OPEN
from xsweep.db.status import RunningJob, Summary, SweepStatus
from xsweep.orchestrator.formatting import duration


def progress_text(sweep: SweepStatus, summary: Summary) -> str:
    """A sweep's progress in one phrase: `12 of 23 jobs done, about 6 min left`."""
    done, left = count(sweep, ("done",)), count(sweep, OPEN)
    if not left:
        broken = sweep.total - done
        return f"{done} jobs done, {broken} failed, skipped or cancelled" if broken else "all done"
    left_s = eta_s(sweep, summary)
    eta = "time left unknown" if left_s is None else f"about {duration(left_s)} left"
    return f"{done} of {sweep.total} jobs done, {eta}"


def count(sweep: SweepStatus, states: tuple[str, ...]) -> int:
    """Number of a sweep's jobs in the given states."""
    return sum(counts.get(state, 0) for counts in sweep.counts.values() for state in states)


def eta_s(sweep: SweepStatus, summary: Summary) -> float | None:
    """Seconds until a sweep is done: its planned seconds at the measured pace; None if unknown.

    The jobs that run now share the remaining work, and the sweep lasts at least as long as the
    longest of them: 120 planned seconds of trainings wait, results took 1.5 times as long as
    planned, two trainings run with 30 s and 60 s to go: max(60, (120 * 1.5 + 30 + 60) / 2) = 135 s.
    """
    left_s, longest_s = 0.0, 0.0
    for kind, planned_s in sweep.cost_s.items():
        running = [job for job in summary.running if job.kind == kind]
        running = running[: sweep.counts[kind].get("running", 0)]
        pace = _pace(kind, planned_s.get("running", 0.0), running, summary)
        if pace is None and any(planned_s.get(state) for state in OPEN):
            return None
        left_s += (planned_s.get("waiting", 0.0) + planned_s.get("ready", 0.0)) * (pace or 0.0)
        for job in running:
            average_s = planned_s.get("running", 0.0) * (pace or 0.0) / len(running)
            job_left_s = max(0.0, (_projected_s(job) or average_s) - job.since_s)
            left_s += job_left_s
            longest_s = max(longest_s, job_left_s)
    running_jobs = sum(states.get("running", 0) for states in sweep.counts.values())
    return max(longest_s, left_s / max(1, running_jobs))


def _pace(kind: str, planned_s: float, running: list[RunningJob], summary: Summary) -> float | None:
    """Seconds per planned second of a kind: of its results, else its running jobs, else all kinds.

    Other kinds come last since they say little about this one.
    """
    if kind in summary.pace:
        return summary.pace[kind]
    projected_s = [job_s for job in running if (job_s := _projected_s(job)) is not None]
    if projected_s and len(projected_s) == len(running) and planned_s:
        return sum(projected_s) / planned_s
    return sum(summary.pace.values()) / len(summary.pace) if summary.pace else None


def _projected_s(job: RunningJob) -> float | None:
    """Total seconds of a running job, projected from its progress; None before there is any."""
    progress = job.progress or {}
    if "left_s" in progress:  # a training's estimate leaves out its start, which happens once
        return job.since_s + progress["left_s"]
    done = progress.get("done")
    return job.since_s * progress["total"] / done if done else None
