"""Reading results: every cell of a sweep, with numbers only where a result was accepted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, Engine, select

from db.bulk import in_binary, pieces
from db.lookup import sweep_id
from db.schema import Edge, Job, QuerySet, Result, Score, SweepJob
from db.transactions import reading

if TYPE_CHECKING:
    import numpy as np

SCORED_JOBS = 100
"""Jobs whose scores are read by one statement."""


class ParentResult(NamedTuple):
    """What a cell was computed from; empty summary and provenance: not done yet."""

    identity: str
    summary: dict[str, Any]
    provenance: dict[str, Any]
    name: str = ""
    folder: str = ""
    """Below the store's root, as that of a cell."""
    manifest_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One job of a sweep and, when it is done, what it measured."""

    job_id: int
    identity: str
    name: str
    labels: dict[str, Any]
    state: str
    failure: str | None
    reason: str | None
    means: dict[str, float]
    scores: "dict[str, np.ndarray]"
    """float64[queries] by measure, in the order of `query_ids`; read-only."""
    query_ids: tuple[str, ...]
    summary: dict[str, Any]
    provenance: dict[str, Any]
    parents_summary: dict[str, ParentResult]
    """By role."""
    folder: str = ""
    """Of the accepted attempt, below the store's root."""
    manifest_sha256: str = ""
    """Of the list of that folder's files with their checksums."""


def load_cells(
    engine: Engine,
    sweep: str | int,
    measures: Sequence[str] | None = None,
    kind: str = "evaluate",
) -> list[Cell]:
    """The sweep's jobs of a kind in the order of their ids, whatever their state.

    `measures` limits means and scores. Raises ConfigError for an unknown sweep.
    """
    with reading(engine) as connection:
        members = (
            select(
                *(Job.id, Job.identity, Job.name, SweepJob.labels, Job.state, Job.failure),
                *(Job.reason, Result.summary, Result.provenance),
                *(Result.folder, Result.manifest_sha256),
            )
            .join_from(SweepJob, Job)
            .outerjoin(Result, Result.job_id == Job.id)
            .where(SweepJob.sweep_id == sweep_id(connection, sweep), Job.kind == kind)
            .order_by(Job.id)
        )
        rows = connection.execute(members).all()
        ids = [row.id for row in rows]
        scores = _scores(connection, ids, measures)
        parents = _parents(connection, ids)
    return [
        Cell(
            job_id=row.id,
            identity=row.identity,
            name=row.name,
            labels=row.labels,
            state=row.state,
            failure=row.failure,
            reason=row.reason,
            means={measure: mean for measure, (mean, _, _) in scores[row.id].items()},
            scores={measure: array for measure, (_, array, _) in scores[row.id].items()},
            query_ids=next((ids for _, _, ids in scores[row.id].values()), ()),
            summary=row.summary or {},
            provenance=row.provenance or {},
            parents_summary=parents[row.id],
            folder=row.folder or "",
            manifest_sha256=row.manifest_sha256 or "",
        )
        for row in rows
    ]


def _scores(
    connection: Connection, job_ids: list[int], measures: Sequence[str] | None
) -> "dict[int, dict[str, tuple[float, np.ndarray, tuple[str, ...]]]]":
    """(mean, array, query ids) by job and measure."""
    import numpy as np

    found: dict[int, dict[str, tuple[float, np.ndarray, tuple[str, ...]]]]
    found = {id_: {} for id_ in job_ids}
    query_ids: dict[int, tuple[str, ...]] = {}
    # a driver holds a whole answer: many megabytes for some thousand jobs
    for piece in pieces(job_ids, SCORED_JOBS):
        stored = select(Score.job_id, Score.measure, Score.query_set_id, Score.packed, Score.mean)
        stored = stored.where(Score.job_id.in_(piece)).order_by(Score.job_id, Score.measure)
        if measures is not None:
            stored = stored.where(Score.measure.in_(list(measures)))
        for job_id, measure, set_id, packed, mean in in_binary(connection, stored):
            if set_id not in query_ids:
                ids = connection.scalar(select(QuerySet.query_ids).where(QuerySet.id == set_id))
                query_ids[set_id] = tuple(ids or ())
            found[job_id][measure] = (mean, np.frombuffer(packed, "<f8"), query_ids[set_id])
    return found


def _parents(connection: Connection, job_ids: list[int]) -> dict[int, dict[str, ParentResult]]:
    found: dict[int, dict[str, ParentResult]] = {id_: {} for id_ in job_ids}
    edges: list[tuple[int, str, int]] = []
    for piece in pieces(job_ids):
        needed = select(Edge.child_id, Edge.role, Edge.parent_id)
        edges += connection.execute(needed.where(Edge.child_id.in_(piece)).order_by(Edge.role))
    results: dict[int, ParentResult] = {}
    # a training is the parent of all its evaluations: read each once
    for piece in pieces(sorted({parent_id for _, _, parent_id in edges})):
        rows = connection.execute(
            select(
                *(Job.id, Job.identity, Result.summary, Result.provenance),
                *(Job.name, Result.folder, Result.manifest_sha256),
            )
            .outerjoin(Result, Result.job_id == Job.id)
            .where(Job.id.in_(piece))
        )
        for id_, identity, summary, provenance, name, folder, manifest in rows:
            results[id_] = ParentResult(
                identity, summary or {}, provenance or {}, name, folder or "", manifest or ""
            )
    for child_id, role, parent_id in edges:
        found[child_id][role] = results[parent_id]
    return found
