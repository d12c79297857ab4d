"""What is left to do, for a controller that must know whether to go on, wait or end."""

from dataclasses import dataclass

from sqlalchemy import Engine, case, exists, func, or_, select

from db.clock import now_s
from db.schema import Job, Sweep, SweepJob
from db.states import State
from db.transactions import read


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """Jobs of active sweeps, counted by what stands between them and their end."""

    claimable: int
    running: int
    """By any controller, leases that ran out included."""
    resting: int
    """Ready, but not before their `retry_at`."""
    next_retry_s: float | None
    """Seconds until the first of the resting jobs may be claimed."""
    failed: int
    finished: int
    total: int

    @property
    def idle(self) -> bool:
        """Whether nothing happens any more unless somebody retries, resumes or submits."""
        return not (self.claimable or self.running or self.resting)


def outlook(engine: Engine) -> Outlook:
    """Count what is left, in one query."""
    rests = Job.retry_at > now_s()
    may_run = or_(Job.retry_at.is_(None), Job.retry_at <= now_s())
    active = exists().where(
        SweepJob.job_id == Job.id, SweepJob.sweep_id == Sweep.id, Sweep.state == "active"
    )
    counts = {
        "claimable": (Job.state == State.READY) & may_run,
        "running": Job.state == State.RUNNING,
        "resting": (Job.state == State.READY) & rests,
        "failed": Job.state == State.FAILED,
        "finished": Job.state == State.DONE,
    }
    columns = [func.count(case((which, 1))).label(name) for name, which in counts.items()]
    next_retry_s = func.min(case((counts["resting"], Job.retry_at))) - now_s()
    query = select(*columns, next_retry_s.label("next_retry_s"), func.count().label("total")).where(
        active
    )
    return read(engine, lambda connection: Outlook(**connection.execute(query).mappings().one()))
