"""What was measured and decided when trials of a search came to a rung; events, in their order."""

from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, func, select

from db.bulk import pieces
from db.events import note
from db.schema import Edge, Event, Job
from db.transactions import read

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
