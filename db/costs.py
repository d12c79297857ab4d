"""What the jobs of a sweep took: the time of all attempts, lost ones too, and the resources."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, select

from db.bulk import pieces
from db.lookup import sweep_id
from db.schema import Attempt, Definition, Job, Result, SweepJob
from db.transactions import reading


@dataclass(frozen=True, kw_only=True)
class JobCost:
    """One job that ran; times in seconds by the database's clock."""

    job_id: int
    kind: str
    labels: dict[str, Any]
    gpus: float
    """Reserved for each attempt."""
    cpus: float
    seconds: float
    """Of the attempt whose result was accepted, from its start; 0 when there is none."""
    lost_s: float
    """Of attempts that ended otherwise."""


def load_costs(engine: Engine, sweep: str | int) -> list[JobCost]:
    """The sweep's jobs that had an attempt, in the order of their ids.

    An attempt that runs now is not counted. Raises ConfigError for an unknown sweep.
    """
    with reading(engine) as connection:
        jobs = connection.execute(
            select(Job.id, Job.kind, SweepJob.labels, Definition.resources, Result.token)
            .join_from(SweepJob, Job)
            .join(Definition, Definition.job_id == Job.id)
            .outerjoin(Result, Result.job_id == Job.id)
            .where(SweepJob.sweep_id == sweep_id(connection, sweep))
            .order_by(Job.id)
        ).all()
        spent: dict[int, list[tuple[int, float]]] = {}
        for piece in pieces([job.id for job in jobs]):
            tries = select(Attempt.job_id, Attempt.token, Attempt.started_at, Attempt.ended_at)
            for id_, token, started_at, ended_at in connection.execute(
                tries.where(Attempt.job_id.in_(piece), Attempt.ended_at.is_not(None))
            ):
                if started_at is not None and ended_at is not None:
                    spent.setdefault(id_, []).append((token, max(ended_at - started_at, 0.0)))
    return [
        JobCost(
            job_id=job.id,
            kind=job.kind,
            labels=job.labels,
            gpus=float(job.resources.get("gpus", 0)) * int(job.resources.get("ranks", 1)),
            cpus=float(job.resources.get("cpus", 0)) * int(job.resources.get("ranks", 1)),
            seconds=sum(s for token, s in spent[job.id] if token == job.token),
            lost_s=sum(s for token, s in spent[job.id] if token != job.token),
        )
        for job in jobs
        if job.id in spent
    ]
