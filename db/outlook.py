"""What is left to do, for a controller that must know whether to go on, wait or end."""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Text,
    case,
    cast,
    exists,
    func,
    or_,
    select,
)

from db.clock import now_s
from db.schema import Attempt, Definition, Job, Sweep, SweepJob, Tally
from db.states import State
from db.transactions import read

_ACTIVE = exists().where(
    SweepJob.job_id == Job.id, SweepJob.sweep_id == Sweep.id, Sweep.state == "active"
)


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """Jobs of active sweeps, counted by what stands between them and their end."""

    claimable: int
    running: int
    """By any controller, leases that ran out included."""
    resting: int
    """Ready, but not before their `retry_at`."""
    failed: int
    finished: int
    """This and `total` count a job of two sweeps twice."""
    total: int

    @property
    def idle(self) -> bool:
        """Whether nothing happens any more unless somebody retries, resumes or submits."""
        return not (self.claimable or self.running or self.resting)


class Want(NamedTuple):
    """So many jobs of a kind may begin, and each asks for this."""

    kind: str
    resources: dict[str, Any]
    jobs: int


def wanted(engine: Engine) -> list[Want]:
    """What the jobs that may be claimed now ask for, counted; the longest chain of jobs first."""
    # As text: PostgreSQL tells no two values of its JSON apart.
    resources = cast(Definition.resources, Text)
    counted = (
        select(Job.kind, resources.label("resources"), func.count().label("jobs"))
        .join(Definition, Definition.job_id == Job.id)
        .where(Job.state == State.READY, _ACTIVE, _may_run())
        .group_by(Job.kind, resources)
        .order_by(func.max(Job.critical_s).desc(), func.min(Job.id))
    )
    rows = read(engine, lambda connection: connection.execute(counted).all())
    return [Want(row.kind, json.loads(row.resources), row.jobs) for row in rows]


def outlook(engine: Engine) -> Outlook:
    """Count what is left, by indexes of the jobs that something can happen to."""
    held = select(Attempt.job_id).where(Attempt.outcome.is_(None))
    ready = select(
        func.count(case((_may_run(), 1))).label("claimable"),
        func.count(case((Job.retry_at > now_s(), 1))).label("resting"),
    ).where(Job.state == State.READY, _ACTIVE)
    counted = select(func.count()).select_from(Job).where(_ACTIVE)
    done = func.sum(case((Tally.state == State.DONE, Tally.jobs), else_=0))
    tallied = (
        select(done.label("finished"), func.sum(Tally.jobs).label("total"))
        .join_from(Tally, Sweep, Tally.sweep_id == Sweep.id)
        .where(Sweep.state == "active")
    )

    def work(connection: Connection) -> Outlook:
        finished, total = connection.execute(tallied).one()
        return Outlook(
            **connection.execute(ready).mappings().one(),
            running=connection.scalar(counted.where(Job.id.in_(held))) or 0,
            failed=connection.scalar(counted.where(Job.state == State.FAILED)) or 0,
            finished=int(finished or 0),
            total=int(total or 0),
        )

    return read(engine, work)


def _may_run() -> ColumnElement[bool]:
    return or_(Job.retry_at.is_(None), Job.retry_at <= now_s())
