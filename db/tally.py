"""Running counts of each sweep's jobs by kind and state, which triggers keep; see `Tally`."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select

from xsweep.db.schema import Tally

FOLD_ROWS = 2_000
"""Rows from which on they are folded: reading this many takes about a millisecond."""

KEY = (Tally.sweep_id, Tally.kind, Tally.state)


@dataclass(frozen=True, kw_only=True)
class Count:
    """The jobs of one kind in one state of a sweep, and their expected seconds together."""

    sweep_id: int
    kind: str
    state: str
    jobs: int
    cost_s: float


def read_tally(connection: Connection, sweep_id: int | None = None) -> Iterator[Count]:
    """The counts of one sweep or of all that are not zero."""
    jobs = func.sum(Tally.jobs)
    query = select(*KEY, jobs.label("jobs"), func.sum(Tally.cost_s).label("cost_s"))
    query = query.group_by(*KEY).having(jobs != 0).order_by(*KEY)
    if sweep_id is not None:
        query = query.where(Tally.sweep_id == sweep_id)
    for row in connection.execute(query).mappings():
        yield Count(**row)


def fold(connection: Connection) -> None:
    """Replace the rows of equal sweep, kind and state by their sum, once there are many.

    Rows that others append meanwhile are not touched, and of two that fold at the same time the
    second finds the rows gone.
    """
    if (connection.scalar(select(func.count()).select_from(Tally)) or 0) < FOLD_ROWS:
        return
    if connection.dialect.name == "postgresql":
        columns = [*(column.key for column in KEY), "jobs", "cost_s"]
        gone = delete(Tally).returning(*KEY, Tally.jobs, Tally.cost_s).cte("gone").c
        key = (gone.sweep_id, gone.kind, gone.state)
        jobs = func.sum(gone.jobs)
        sums = select(*key, jobs, func.sum(gone.cost_s)).group_by(*key).having(jobs != 0)
        connection.execute(insert(Tally).from_select(columns, sums))
    else:
        counts = [vars(count) for count in read_tally(connection)]
        connection.execute(delete(Tally))
        if counts:
            connection.execute(insert(Tally), counts)
