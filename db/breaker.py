"""Stopping a column of the grid: a backbone that never loads fails some jobs, not a hundred."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, exists, select

from xsweep.db.dependencies import lock, move, skip_descendants
from xsweep.db.events import record
from xsweep.db.schema import Event, Job, State, Sweep, SweepJob, now_s
from xsweep.db.transaction import pieces

AXES = ("backbone", "teacher", "objective", "collection")
"""Labels of a sweep's jobs whose values are the columns that may be stopped."""


ALIKE = 3
"""Jobs of a column that must have failed in the same way, and none in another."""


BLAMED = ("CONFIG", "DATA", "NAN", "OOM_GPU", "OOM_HOST", "HANG", "UNKNOWN")
"""Failure classes that a column can be the cause of; machines and networks are the others'."""


@dataclass(frozen=True)
class _Member:
    """A job of the sweep, of the same kind as the one that failed."""

    id: int
    labels: dict[str, Any]
    state: str
    failure: str | None
    reason: str | None

    @property
    def failed_as(self) -> tuple[str, str] | None:
        """What makes two failures the same: class and first line, whatever its numbers."""
        if self.state != State.FAILED:
            return None
        line = (self.reason or "").strip().partition("\n")[0]
        return self.failure or "", re.sub(r"\d+", "#", line)


def stop_columns(connection: Connection, job_id: int) -> int:
    """After a failure for good: skip what is left of a column all of whose ended jobs failed alike.

    A column is every job of one kind in a sweep with one value of an axis: the trainings of a
    backbone. It is stopped when `ALIKE` of its jobs failed the same, none ended otherwise, and the
    failures spread over two values of every other axis that varies in it; so three seeds of one
    cell blame neither its backbone nor its objective. The last column of an axis that still has
    something to do is never stopped, nor are jobs that another sweep needs. Returns how many jobs
    were stopped; `reopen` takes them up again.
    """
    failed = connection.execute(select(Job.kind, Job.failure).where(Job.id == job_id)).one()
    if failed.failure not in BLAMED:
        return 0
    stopped = 0
    mine = select(SweepJob.sweep_id).join(Sweep).where(SweepJob.job_id == job_id)
    for sweep_id in connection.scalars(mine.where(Sweep.state != "cancelled")).all():
        members = select(Job.id, SweepJob.labels, Job.state, Job.failure, Job.reason)
        members = members.join(SweepJob).where(SweepJob.sweep_id == sweep_id)
        members = members.where(Job.kind == failed.kind)
        alike = members.where(Job.state == State.FAILED, Job.failure == failed.failure)
        if len(connection.execute(alike.limit(ALIKE)).all()) < ALIKE:
            continue
        kin = [_Member(*row) for row in connection.execute(members)]
        this = next(member for member in kin if member.id == job_id)
        for axis in AXES:
            column = _guilty_column(kin, this, axis)
            reason = f"{axis} {this.labels.get(axis)}: its jobs fail alike: {failed.failure}: "
            told = {"axis": axis, "value": this.labels.get(axis), "failure": failed.failure}
            found = {"sweep_id": sweep_id, **told, "reason": reason + (this.reason or "")[:500]}
            stopped += _stop(connection, sweep_id, column, found)
    return stopped


def stopped_jobs(connection: Connection, job_ids: Collection[int]) -> dict[int, str]:
    """The failure class for which jobs were stopped last, of those that ever were."""
    found: dict[int, str] = {}
    for piece in pieces(sorted(job_ids)):
        events = select(Event.job_id, Event.detail).where(Event.kind == "stopped")
        for id_, detail in connection.execute(
            events.where(Event.job_id.in_(piece)).order_by(Event.id)
        ):
            found[id_] = detail["failure"]
    return found


def _guilty_column(kin: Sequence[_Member], this: _Member, axis: str) -> list[int]:
    """Ids of the column's jobs that have not begun, if it is to be stopped."""
    value = this.labels.get(axis)
    column = [member for member in kin if member.labels.get(axis) == value]
    others = [member for member in kin if member.labels.get(axis) not in (None, value)]
    going_on = (State.WAITING, State.READY, State.RUNNING, State.DONE)
    if value is None or not any(member.state in going_on for member in others):
        return []
    ended = [member for member in column if member.state in (State.DONE, State.FAILED)]
    if len(ended) < ALIKE or any(member.failed_as != this.failed_as for member in ended):
        return []
    for other in AXES:
        varies = len({str(member.labels.get(other)) for member in column}) > 1
        if varies and len({str(member.labels.get(other)) for member in ended}) < 2:
            return []
    return [member.id for member in column if member.state in (State.WAITING, State.READY)]


def _stop(
    connection: Connection, sweep_id: int, column: Sequence[int], found: dict[str, Any]
) -> int:
    needed = exists().where(
        SweepJob.job_id == Job.id,
        SweepJob.sweep_id == Sweep.id,
        Sweep.id != sweep_id,
        Sweep.state != "cancelled",
    )
    lock(connection, column)
    stopped: list[int] = []
    for piece in pieces(column):
        still = select(Job.id).where(Job.id.in_(piece), ~needed)
        stopped += connection.scalars(still.where(Job.state.in_((State.WAITING, State.READY))))
    if stopped:
        why = found["reason"]
        move(connection, stopped, State.SKIPPED, reason=why, ended_at=now_s(), retry_at=None)
        record(connection, "stopped", *({**found, "job_id": id_} for id_ in stopped))
        skip_descendants(connection, stopped, why)
    return len(stopped)
