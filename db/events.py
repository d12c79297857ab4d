"""The history: one row per thing that happened, written in the transaction that made it happen.

What went wrong lately: failed attempts from the history, whether they are tried again or not.

What was measured and decided when trials of a search came to a rung; events, in their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, func, insert, select

from xsweep.db.schema import Edge, Event, Job, Sweep, SweepJob, now_s
from xsweep.db.transaction import pieces, read, reading, transact

_APPEND = insert(Event).values(at=now_s())


SUBJECT = ("sweep_id", "job_id", "token", "owner")


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
    if not rows:
        return
    connection.execute(
        _APPEND,
        [
            {name: row.get(name) for name in SUBJECT}
            | {"kind": kind}
            | {"detail": {name: row[name] for name in row if name not in SUBJECT}}
            for row in rows
        ],
    )


def note(engine: Engine, kind: str, **row: Any) -> None:
    """Append one event of somebody who moves no job: who announced, what was decided."""
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


KINDS = ("failed", "expired")


LOOKED_AT = 2_000
"""Events that are looked through for failures: a cost that does not grow with the history."""


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


def last_event(engine: Engine) -> int:
    """Id of the newest event, 0 before there is any."""
    return read(engine, lambda connection: connection.scalar(select(func.max(Event.id))) or 0)


def troubles_since(engine: Engine, event: int) -> list[FailedAttempt]:
    """The failures after an event, the oldest first, with the sweeps that share their jobs."""

    def work(connection: Connection) -> list[FailedAttempt]:
        return _with_sweeps(connection, _troubles(connection, event))

    return read(engine, work)


def latest_troubles(
    connection: Connection, limit: int, sweep: int | None = None
) -> list[FailedAttempt]:
    """The latest failures among the last `LOOKED_AT` events, the newest first; of one sweep's jobs
    where it is named by its id."""
    newest = connection.scalar(select(func.max(Event.id))) or 0
    found = _troubles(connection, newest - LOOKED_AT)
    if sweep is not None and found:
        ids = {each.job_id for each in found}
        mine = select(SweepJob.job_id).where(SweepJob.sweep_id == sweep)
        kept = set(connection.scalars(mine.where(SweepJob.job_id.in_(ids))))
        found = [each for each in found if each.job_id in kept]
    return found[: -limit - 1 : -1]


def _troubles(connection: Connection, event: int) -> list[FailedAttempt]:
    # a range of ids, and not a search for kinds, which have no index
    rows = connection.execute(
        select(Event.id, Event.at, Event.token, Event.detail, Job.id.label("job_id"))
        .add_columns(Job.kind, Job.name)
        .join(Job, Job.id == Event.job_id)
        .where(Event.id > event, Event.kind.in_(KINDS))
        .order_by(Event.id)
    )
    return [
        FailedAttempt(
            event=row.id,
            at=row.at,
            job_id=row.job_id,
            kind=row.kind,
            name=row.name,
            token=row.token or 0,
            failure=str(row.detail.get("failure")),
            reason=str(row.detail.get("reason") or ""),
            next=str(row.detail.get("next")),
        )
        for row in rows
    ]


def _with_sweeps(connection: Connection, found: list[FailedAttempt]) -> list[FailedAttempt]:
    names: dict[int, list[str]] = {each.job_id: [] for each in found}
    members = select(SweepJob.job_id, Sweep.name).join(Sweep).order_by(Sweep.id)
    for job_id, name in connection.execute(members.where(SweepJob.job_id.in_(list(names)))):
        names[job_id].append(name)
    return [FailedAttempt(**{**vars(each), "sweeps": tuple(names[each.job_id])}) for each in found]


KIND = "rung"


class Rung(NamedTuple):
    """A trial at a rung: its first validation there, and whether it was to end."""

    job_id: int
    step: int
    validation: float
    ends: bool


def peers_of(engine: Engine, job_id: int) -> list[int]:
    """The trials of the newest search that this one belongs to, itself among them, by id."""

    def work(connection: Connection) -> list[int]:
        search = (
            select(func.max(Job.id))
            .join(Edge, Edge.child_id == Job.id)
            .where(Edge.parent_id == job_id, Job.kind == "search")
        )
        trials = select(Edge.parent_id).where(Edge.child_id == search.scalar_subquery())
        return sorted(set(connection.scalars(trials)))

    return read(engine, work)


def rungs_of(engine: Engine, job_ids: list[int]) -> list[Rung]:
    """What these trials came to, in the order in which it was decided."""

    def work(connection: Connection) -> list[Rung]:
        found: list[Any] = []
        for piece in pieces(job_ids):
            events = select(Event.id, Event.job_id, Event.detail)
            events = events.where(Event.job_id.in_(piece), Event.kind == KIND)
            found += connection.execute(events).all()
        return [Rung(row.job_id, **row.detail) for row in sorted(found, key=lambda row: row.id)]

    return read(engine, work)


def note_rung(engine: Engine, rung: Rung, token: int) -> None:
    """Write down a decision, so that the next controller decides on with the same knowledge."""
    detail = {"step": rung.step, "validation": rung.validation, "ends": rung.ends}
    note(engine, KIND, job_id=rung.job_id, token=token, **detail)
