"""The history: an event per change, appended in the transaction that makes the change."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sqlalchemy import JSON, Connection, Engine, Text, func, insert, literal, select

from xsweep.db.schema import Edge, Event, Job, Sweep, SweepJob, now_s
from xsweep.db.transaction import among, insert_rows, listed, read, reading, to_json, transact

SUBJECT = ("sweep_id", "job_id", "token", "owner")

RUNG = "rung"

SCANNED = 2_000
"""Latest events that are scanned for failures: a cost that does not grow with the history."""

MANY = 100
"""Events from which on they are inserted in bulk, which takes two more round trips."""

_APPEND = insert(Event).values(at=now_s())


@dataclass(frozen=True, kw_only=True)
class EventRow:
    """One event; `at` in seconds since 1970 by the database's clock, later ones have larger ids."""

    id: int
    at: float
    kind: str
    sweep_id: int | None
    job_id: int | None
    token: int | None
    owner: str | None
    detail: dict[str, Any]


def record(connection: Connection, kind: str, *rows: Mapping[str, Any]) -> None:
    """Append an event for each row: its subject's columns, and the rest of it as detail."""
    details = [{name: row[name] for name in row if name not in SUBJECT} for row in rows]
    subjects = [{name: row.get(name) for name in SUBJECT} for row in rows]
    events = list(zip(subjects, details, strict=True))
    if len(rows) > MANY:
        at = connection.scalar(select(now_s()))
        columns = ("at", "kind", *SUBJECT, "detail")
        plain = ((at, kind, *subject.values(), to_json(detail)) for subject, detail in events)
        insert_rows(connection, Event, columns, plain)
    elif rows:
        given = [{**subject, "kind": kind, "detail": detail} for subject, detail in events]
        connection.execute(_APPEND, given)


def record_jobs(connection: Connection, kind: str, job_ids: Collection[int], **detail: Any) -> None:
    """Append the same event for each of these jobs, made by the database itself."""
    if job_ids:
        ids = listed(connection, Job.id, sorted(job_ids)).subquery()
        events = select(now_s(), literal(kind, Text), ids.c.value, literal(detail, JSON))
        connection.execute(insert(Event).from_select(["at", "kind", "job_id", "detail"], events))


def record_event(engine: Engine, kind: str, **row: Any) -> None:
    """Append one event that changes no job: a notification sent, a decision made."""
    transact(engine, lambda connection: record(connection, kind, row))


def history(
    engine: Engine, *, job_id: int | None = None, sweep_id: int | None = None, latest: int = 100
) -> list[EventRow]:
    """The latest events of a job, a sweep or everything, oldest first."""
    query = select(Event).order_by(Event.id.desc()).limit(latest)
    if job_id is not None:
        query = query.where(Event.job_id == job_id)
    if sweep_id is not None:
        query = query.where(Event.sweep_id == sweep_id)
    with reading(engine) as connection:
        rows = connection.execute(query).mappings().all()
    return [EventRow(**row) for row in reversed(rows)]


def first_event_s(engine: Engine) -> float:
    """Start of this job table's history, in s by the database's clock: no two tables share it.

    An empty history begins now, and keeps this start.
    """
    first = select(Event.at).order_by(Event.id).limit(1)
    if (found := read(engine, lambda connection: connection.scalar(first))) is not None:
        return found
    record_event(engine, "opened")
    return first_event_s(engine)


def last_event(engine: Engine) -> int:
    """Id of the newest event, 0 before there is any."""
    return read(engine, _last_event)


def _last_event(connection: Connection) -> int:
    return connection.scalar(select(func.max(Event.id))) or 0


@dataclass(frozen=True, kw_only=True)
class FailedAttempt:
    """An attempt that failed or lost its lease."""

    event: int
    at: float
    job_id: int
    kind: str
    name: str
    token: int
    failure: str
    reason: str
    next: str
    """The job's state after it: `ready` for another try, or `failed`."""
    sweeps: tuple[str, ...] = ()


def failures_since(engine: Engine, event: int) -> list[FailedAttempt]:
    """The failed attempts after an event, oldest first, with the sweeps that share their jobs."""

    def work(connection: Connection) -> list[FailedAttempt]:
        found = _failures(connection, event)
        names: dict[int, list[str]] = {each.job_id: [] for each in found}
        members = select(SweepJob.job_id, Sweep.name).join(Sweep).order_by(Sweep.id)
        members = members.where(among(connection, SweepJob.job_id, names))
        for job_id, name in connection.execute(members):
            names[job_id].append(name)
        return [replace(each, sweeps=tuple(names[each.job_id])) for each in found]

    return read(engine, work)


def latest_failures(
    connection: Connection, limit: int, sweep_id: int | None = None
) -> list[FailedAttempt]:
    """The failed attempts, of one sweep or of all, in the last `SCANNED` events, newest first."""
    found = _failures(connection, _last_event(connection) - SCANNED)
    if sweep_id is not None and found:
        failed = among(connection, SweepJob.job_id, {each.job_id for each in found})
        members = select(SweepJob.job_id).where(SweepJob.sweep_id == sweep_id, failed)
        ids = set(connection.scalars(members))
        found = [each for each in found if each.job_id in ids]
    return found[: -limit - 1 : -1]


def _failures(connection: Connection, event: int) -> list[FailedAttempt]:
    # a range of ids, and not a search for kinds, which have no index
    columns = (Event.id.label("event"), Event.at, Event.job_id, Event.token, Job.kind, Job.name)
    details = (Event.detail[key].as_string().label(key) for key in ("failure", "reason", "next"))
    failed = (
        select(*columns, *details)
        .join(Job, Job.id == Event.job_id)
        .where(Event.id > event, Event.kind.in_(("failed", "expired")))
        .order_by(Event.id)
    )
    return [FailedAttempt(**row) for row in connection.execute(failed).mappings()]


class Rung(NamedTuple):
    """A trial at a rung: its first validation there, and the decision to end it or not."""

    job_id: int
    step: int
    validation: float
    ends: bool


def record_rung(engine: Engine, rung: Rung, token: int) -> None:
    """Store a decision, so that the next controller continues with the same knowledge."""
    record_event(engine, RUNG, token=token, **rung._asdict())


def load_rungs(engine: Engine, job_ids: list[int]) -> list[Rung]:
    """The rungs that these trials reached, in the order of the decisions."""

    def work(connection: Connection) -> list[Rung]:
        events = select(Event.job_id, Event.detail).where(Event.kind == RUNG).order_by(Event.id)
        rows = connection.execute(events.where(among(connection, Event.job_id, job_ids)))
        return [Rung(job_id or 0, **detail) for job_id, detail in rows]

    return read(engine, work)


def load_trials(engine: Engine, job_id: int) -> list[int]:
    """The ids of all trials in the newest search that the trial `job_id` belongs to."""

    def work(connection: Connection) -> list[int]:
        search = (
            select(func.max(Job.id))
            .join(Edge, Edge.child_id == Job.id)
            .where(Edge.parent_id == job_id, Job.kind == "search")
        )
        trials = select(Edge.parent_id).where(Edge.child_id == search.scalar_subquery())
        return sorted(set(connection.scalars(trials)))

    return read(engine, work)
