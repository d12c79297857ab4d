"""A sweep at a glance: the state of every job under its labels, and what evaluations measured."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, select

from db.lookup import sweep_id
from db.schema import Attempt, Job, Score, SweepJob
from db.transactions import reading


@dataclass(frozen=True, kw_only=True)
class Place:
    """A job of a sweep, without what it was told and what it left behind."""

    job_id: int
    kind: str
    name: str
    state: str
    failure: str | None
    labels: dict[str, Any]
    progress: dict[str, Any] | None
    """Of the attempt that runs now."""
    means: dict[str, float] = field(default_factory=dict)
    """By measure, over the queries of an accepted evaluation."""


def overview(engine: Engine, sweep: str | int) -> list[Place]:
    """The sweep's jobs in the order of their ids; no per-query scores are read.

    Raises ConfigError for an unknown sweep.
    """
    with reading(engine) as connection:
        mine = SweepJob.sweep_id == sweep_id(connection, sweep)
        columns = (
            *(Job.id.label("job_id"), Job.kind, Job.name, Job.state, Job.failure),
            *(SweepJob.labels, Attempt.progress),
        )
        live = (Attempt.job_id == Job.id) & Attempt.outcome.is_(None)
        jobs = select(*columns).join_from(SweepJob, Job).outerjoin(Attempt, live).where(mine)
        rows = connection.execute(jobs.order_by(Job.id)).mappings().all()
        scores = select(Score.job_id, Score.measure, Score.mean)
        scores = scores.join(SweepJob, SweepJob.job_id == Score.job_id).where(mine)
        means: dict[int, dict[str, float]] = defaultdict(dict)
        for job_id, measure, mean in connection.execute(scores):
            means[job_id][measure] = mean
    return [Place(**row, means=means.get(row["job_id"], {})) for row in rows]
