"""Kept counts: how many jobs of each sweep are in each state, without looking at the jobs."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select

from db.schema import Tally

FOLD_ROWS = 2_000
"""From how many rows on they are put together: reading so many takes about a millisecond."""

KEY = (Tally.sweep_id, Tally.kind, Tally.state)
SUMS = (func.sum(Tally.jobs).label("jobs"), func.sum(Tally.cost_s).label("cost_s"))


@dataclass(frozen=True, kw_only=True)
class Count:
    """Jobs of one kind in one state of a sweep, and their expected seconds together."""

    sweep_id: int
    kind: str
    state: str
    jobs: int
    cost_s: float


def read_tally(connection: Connection, sweep_id: int | None = None) -> Iterator[Count]:
    """The counts of one sweep or of all that are not zero."""
    query = select(*KEY, *SUMS).group_by(*KEY).order_by(*KEY)
    if sweep_id is not None:
        query = query.where(Tally.sweep_id == sweep_id)
    for row in connection.execute(query.having(func.sum(Tally.jobs) != 0)).mappings():
        yield Count(**row)


def fold(connection: Connection) -> None:
    """Put rows of equal sweep, kind and state together if there are many; costs that of reading.

    Rows that others append meanwhile are not touched, and of two that fold at the same time the
    second finds the rows gone.
    """
    if (connection.scalar(select(func.count()).select_from(Tally)) or 0) < FOLD_ROWS:
        return
    columns = ["sweep_id", "kind", "state", "jobs", "cost_s"]
    if connection.dialect.name == "postgresql":
        gone = delete(Tally).returning(*KEY, Tally.jobs, Tally.cost_s).cte("gone")
        key = (gone.c.sweep_id, gone.c.kind, gone.c.state)
        jobs = func.sum(gone.c.jobs)
        sums = select(*key, jobs, func.sum(gone.c.cost_s)).group_by(*key).having(jobs != 0)
        connection.execute(insert(Tally).from_select(columns, sums))
    else:
        kept = [vars(count) for count in read_tally(connection)]
        connection.execute(delete(Tally))
        if kept:
            connection.execute(insert(Tally), kept)
