"""The history: one row per thing that happened, written in the transaction that made it happen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from db.clock import now_s
from db.schema import Event
from db.transactions import reading, transact

_APPEND = insert(Event).values(at=now_s())
SUBJECT = ("sweep_id", "job_id", "token", "owner")


@dataclass(frozen=True, kw_only=True)
class Happening:
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
) -> list[Happening]:
    """The latest events of a job, a sweep or everything, oldest first."""
    query = select(Event).order_by(Event.id.desc()).limit(latest)
    if job_id is not None:
        query = query.where(Event.job_id == job_id)
    if sweep_id is not None:
        query = query.where(Event.sweep_id == sweep_id)
    with reading(engine) as connection:
        rows = connection.execute(query).mappings().all()
    return [Happening(**row) for row in reversed(rows)]
