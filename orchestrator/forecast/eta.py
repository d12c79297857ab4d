"""Progress of a sweep: the jobs that are done, and the time that the rest will take."""

from xsweep.db.schema import OPEN, State
from xsweep.db.status import RunningJob, Summary, SweepStatus
from xsweep.orchestrator.formatting import duration

UNSTARTED = (State.WAITING, State.READY)
ASSUMED_S = 20.0
"""Weight of a pace that is assumed: the forecast's, or for one kind that of all."""


def progress_text(sweep: SweepStatus, summary: Summary) -> str:
    """A sweep's progress in one phrase: `12 of 23 jobs done, about 6 min left`."""
    done, left = count(sweep, ("done",)), count(sweep, OPEN)
    if not left:
        broken = sweep.total - done
        return f"{done} jobs done, {broken} failed, skipped or cancelled" if broken else "all done"
    return f"{done} of {sweep.total} jobs done, about {duration(eta_s(sweep, summary))} left"


def count(sweep: SweepStatus, states: tuple[str, ...]) -> int:
    """Number of a sweep's jobs in the given states."""
    return sum(counts.get(state, 0) for counts in sweep.counts.values() for state in states)


def eta_s(sweep: SweepStatus, summary: Summary) -> float:
    """Seconds until a sweep is done: the expected seconds of its jobs at the pace measured so far.

    The jobs of a kind share the places that the cluster has for them, and what is left takes no
    less than its longest job. Two trainings of 60 expected seconds run, both 30 s and half done;
    120 s of trainings wait for these two places: (120 + 30 + 30) / 2 = 90 s.
    """
    running = {
        kind: [job for job in summary.running if job.kind == kind][: counts.get("running", 0)]
        for kind, counts in sweep.counts.items()
    }
    measured = {
        kind: _measured(summary.pace.get(kind), sweep.cost_s[kind].get("done", 0.0), jobs)
        for kind, jobs in running.items()
    }
    general = _pace(1.0, *measured.values())
    left_s = longest_s = 0.0
    places = _places(summary)
    for kind, jobs in running.items():
        seen = sweep.cost_s[kind].get("done")
        pace = _pace(general if seen else summary.pace.get(kind, general), measured[kind])
        unstarted = sum(sweep.counts[kind].get(state, 0) for state in UNSTARTED)
        unstarted_s = pace * sum(sweep.cost_s[kind].get(state, 0.0) for state in UNSTARTED)
        jobs_s = [_left_s(job, pace) for job in jobs]
        at_once = min(places.get(kind) or len(summary.running), len(jobs) + unstarted)
        left_s += (sum(jobs_s) + unstarted_s) / max(1, at_once)
        longest_s = max(longest_s, unstarted_s / max(1, unstarted), *jobs_s)
    return max(longest_s, left_s)


def _places(summary: Summary) -> dict[str, int]:
    """Jobs of each kind that the cluster runs at once, as the controller last wrote."""
    known = [(job.progress or {}).get("places") for job in summary.running]
    return next(filter(None, reversed(known)), {})


def _measured(pace: float | None, done_s: float, running: list[RunningJob]) -> tuple[float, float]:
    """Seconds that jobs of a kind took, results and running ones, and those expected for as much.

    A job of 200 expected seconds that is half done after 60 s adds 60 and 100.
    """
    expected_s = done_s if pace else 0.0
    took_s = (pace or 0.0) * expected_s
    for job in running:
        if total_s := _projected_s(job):
            took_s += job.since_s
            expected_s += job.cost_s * job.since_s / total_s
    return took_s, expected_s


def _pace(assumed: float, *measured: tuple[float, float]) -> float:
    """Seconds per expected second; the assumed pace counts as `ASSUMED_S` of measurements."""
    took_s, expected_s = (sum(values) for values in zip(*measured, strict=True))
    return (took_s + assumed * ASSUMED_S) / (expected_s + ASSUMED_S)


def _left_s(job: RunningJob, pace: float) -> float:
    """Seconds left of a running job: its projection counts the more, the more of it is done."""
    progress = job.progress or {}
    if "left_s" in progress:
        return float(progress["left_s"])
    share = progress.get("done", 0) / (progress.get("total") or 1)
    projected_s = (_projected_s(job) or 0.0) - job.since_s
    return share * projected_s + (1 - share) * max(0.0, job.cost_s * pace - job.since_s)


def _projected_s(job: RunningJob) -> float | None:
    """Total seconds of a running job, projected from its progress; None before there is any."""
    progress = job.progress or {}
    if "left_s" in progress:  # a training's estimate leaves out its start, which happens once
        return job.since_s + progress["left_s"]
    done = progress.get("done")
    return job.since_s * progress["total"] / done if done else None
