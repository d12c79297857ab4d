"""How long the newest finished jobs took, with what they were and where they ran."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, func, select

from db.bulk import pieces
from db.schema import Attempt, Definition, Edge, Job, Result
from db.transactions import reading

NEWEST = 1_000
"""Results that are looked at."""


@dataclass(frozen=True, kw_only=True)
class Duration:
    """One accepted result's time by the database's clock, from its worker's start to its end."""

    kind: str
    spec: dict[str, Any]
    parents: dict[str, tuple[str, dict[str, Any]]]
    """Role to kind and spec."""
    resources: dict[str, Any]
    hardware: dict[str, Any]
    """As the result's provenance has it; empty where it has none."""
    seconds: float


def load_durations(engine: Engine) -> list[Duration]:
    """The newest results of each kind that were computed, not copied; at most NEWEST in all."""
    took_s = Attempt.ended_at - func.coalesce(Attempt.started_at, Attempt.claimed_at)
    newest = (
        select(Job.id, Job.kind, Definition.spec, Definition.resources, Result.provenance)
        .add_columns(took_s.label("took_s"))
        .join_from(Attempt, Job)
        .join(Definition, Definition.job_id == Job.id)
        .join(Result, (Result.job_id == Job.id) & (Result.token == Attempt.token))
        .where(Attempt.outcome == "done")
        .order_by(Attempt.ended_at.desc(), Job.id)
        .limit(NEWEST)
    )
    with reading(engine) as connection:
        rows = connection.execute(newest).all()
        parents: dict[int, dict[str, tuple[str, dict[str, Any]]]] = {row.id: {} for row in rows}
        for piece in pieces(list(parents)):
            edges = (
                select(Edge.child_id, Edge.role, Job.kind, Definition.spec)
                .join_from(Edge, Job, Edge.parent_id == Job.id)
                .join(Definition, Definition.job_id == Job.id)
                .where(Edge.child_id.in_(piece))
            )
            for child, role, kind, spec in connection.execute(edges):
                parents[child][role] = (kind, spec)
    return list(_durations(rows, parents))


def _durations(rows: Any, parents: dict[int, Any]) -> Iterator[Duration]:
    for row in rows:
        yield Duration(
            kind=row.kind,
            spec=row.spec,
            parents=parents[row.id],
            resources=row.resources,
            hardware=(row.provenance or {}).get("hardware", {}),
            seconds=max(0.0, row.took_s),
        )
