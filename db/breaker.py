"""Circuit breaker: skip the rest of a grid column whose jobs all fail alike."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, select

from xsweep.db.dependencies import lock, move, needed_by_sweep, skip_descendants
from xsweep.db.events import record
from xsweep.db.schema import Event, Job, State, Sweep, SweepJob, now_s
from xsweep.db.transaction import among

AXES = ("backbone", "teacher", "objective", "collection")
"""Labels of a sweep's jobs whose values are the columns that may be stopped."""

MIN_FAILURES = 3
"""Jobs of a column that must have failed alike before it is stopped."""

COLUMN_FAILURES = ("CONFIG", "DATA", "NAN", "OOM_GPU", "OOM_HOST", "HANG", "UNKNOWN")
"""Failure classes that a column can cause; the others come from machines and networks."""

NOT_BEGUN = (State.WAITING, State.READY)


def stop_columns(connection: Connection, job_id: int) -> int:
    """After a job failed, skip the rest of each of its columns whose ended jobs all failed alike.

    A column is every job of one kind in a sweep with one value of an axis: the trainings of a
    backbone. It is stopped when `MIN_FAILURES` of its jobs failed alike, none ended otherwise, and
    the failures spread over two values of every other axis that varies in it: three seeds of one
    cell blame neither its backbone nor its objective. The last column of an axis with open or done
    jobs is never stopped, nor are jobs that another sweep needs. Returns the number of stopped
    jobs; `reopen` undoes it.
    """
    failed = connection.execute(select(Job.kind, Job.failure).where(Job.id == job_id)).one()
    if failed.failure not in COLUMN_FAILURES:
        return 0
    stopped = 0
    sweeps = select(SweepJob.sweep_id).join(Sweep).where(SweepJob.job_id == job_id)
    for sweep_id in connection.scalars(sweeps.where(Sweep.state != "cancelled")).all():
        query = select(Job.id, SweepJob.labels, Job.state, Job.failure, Job.reason)
        query = query.join(SweepJob).where(SweepJob.sweep_id == sweep_id, Job.kind == failed.kind)
        alike = query.where(Job.state == State.FAILED, Job.failure == failed.failure)
        if len(connection.execute(alike.limit(MIN_FAILURES)).all()) < MIN_FAILURES:
            continue
        members = connection.execute(query).all()
        job = next(member for member in members if member.id == job_id)
        for axis in AXES:
            if column := _column_to_stop(members, job, axis):
                value = job.labels.get(axis)
                reason = f"{axis} {value}: its jobs fail alike: {job.failure}: "
                detail = {"axis": axis, "value": value, "failure": job.failure}
                detail["reason"] = reason + (job.reason or "")[:500]
                stopped += _stop(connection, sweep_id, column, detail)
    return stopped


def stopped_jobs(connection: Connection, job_ids: Collection[int]) -> dict[int, str]:
    """The failure class for which jobs were last stopped, by the ids of those that ever were."""
    events = select(Event.job_id, Event.detail).where(Event.kind == "stopped").order_by(Event.id)
    rows = connection.execute(events.where(among(connection, Event.job_id, job_ids)))
    return {id_: detail["failure"] for id_, detail in rows}


def _column_to_stop(members: Sequence[Any], job: Any, axis: str) -> list[int]:
    """The ids of the jobs of the failed job's column that have not begun, if it must stop."""
    value = job.labels.get(axis)
    column = [member for member in members if member.labels.get(axis) == value]
    others = [member for member in members if member.labels.get(axis) not in (None, value)]
    promising = (*NOT_BEGUN, State.RUNNING, State.DONE)
    if value is None or not any(member.state in promising for member in others):
        return []
    ended = [member for member in column if member.state in (State.DONE, State.FAILED)]
    if len(ended) < MIN_FAILURES or any(_failure(each) != _failure(job) for each in ended):
        return []
    for other in AXES:
        varies = len({str(member.labels.get(other)) for member in column}) > 1
        if varies and len({str(member.labels.get(other)) for member in ended}) < 2:
            return []
    return [member.id for member in column if member.state in NOT_BEGUN]


def _failure(member: Any) -> tuple[str, str] | None:
    """Failure class and first line of the reason without its numbers; None unless failed."""
    if member.state != State.FAILED:
        return None
    line = (member.reason or "").strip().partition("\n")[0]
    return member.failure, re.sub(r"\d+", "#", line)


def _stop(connection: Connection, sweep_id: int, column: list[int], detail: dict[str, Any]) -> int:
    lock(connection, column)
    idle = select(Job.id).where(among(connection, Job.id, column), Job.state.in_(NOT_BEGUN))
    stopped = connection.scalars(idle.where(~needed_by_sweep(Job.id, besides=sweep_id))).all()
    if stopped:
        reason = detail["reason"]
        move(connection, stopped, State.SKIPPED, reason=reason, ended_at=now_s(), retry_at=None)
        events = ({"sweep_id": sweep_id, **detail, "job_id": id_} for id_ in stopped)
        record(connection, "stopped", *events)
        skip_descendants(connection, stopped, reason)
    return len(stopped)
