"""A sweep as it is stored: grid, jobs, and accepted results, for an archive."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, select

from db.bulk import pieces
from db.lookup import sweep_id
from db.schema import Attempt, Definition, Edge, Job, Result, Sweep, SweepJob
from db.submission import NewJob
from db.transactions import reading


@dataclass(frozen=True, kw_only=True)
class StoredResult:
    """An accepted result, as it is exported and imported."""

    folder: str
    """Below the store's root."""
    manifest_sha256: str
    summary: dict[str, Any]
    provenance: dict[str, Any]
    seconds: float
    """Of the accepted attempt, by the database's clock."""
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """{measure: {query id: value}}; not read by `load_sweep`."""


@dataclass(frozen=True, kw_only=True)
class StoredSweep:
    """A sweep's jobs, parents before children, with the results of those that are done."""

    name: str
    grid: str
    jobs: list[NewJob]
    results: dict[str, StoredResult]
    """By the job's identity."""


def load_sweep(engine: Engine, sweep: str) -> StoredSweep:
    """Everything that the database holds of a sweep but scores. ConfigError for an unknown one."""
    with reading(engine) as connection:
        id_ = sweep_id(connection, sweep)
        name, grid = connection.execute(select(Sweep.name, Sweep.grid).filter_by(id=id_)).one()
        columns = (Job.id, Job.identity, Job.kind, Job.name, SweepJob.labels)
        rows = connection.execute(
            select(*columns, Definition.spec, Definition.resources, Definition.cost_s)
            .add_columns(Result.token, Result.folder, Result.manifest_sha256)
            .add_columns(Result.summary, Result.provenance)
            .add_columns(Attempt.started_at, Attempt.claimed_at, Attempt.ended_at)
            .join_from(SweepJob, Job)
            .join(Definition, Definition.job_id == Job.id)
            .outerjoin(Result, Result.job_id == Job.id)
            .outerjoin(Attempt, (Attempt.job_id == Job.id) & (Attempt.token == Result.token))
            .where(SweepJob.sweep_id == id_)
            .order_by(Job.id)
        ).all()
        identities = {row.id: row.identity for row in rows}
        parents: dict[int, dict[str, str]] = {row.id: {} for row in rows}
        for piece in pieces(list(parents)):
            edges = select(Edge.child_id, Edge.role, Edge.parent_id)
            edges = edges.where(Edge.child_id.in_(piece)).order_by(Edge.child_id, Edge.role)
            for child, role, parent in connection.execute(edges):
                parents[child][role] = identities[parent]
    return StoredSweep(
        name=name,
        grid=grid,
        jobs=[
            NewJob(
                identity=row.identity,
                kind=row.kind,
                name=row.name,
                spec=row.spec,
                parents=parents[row.id],
                resources=row.resources,
                labels=row.labels,
                cost=row.cost_s,
            )
            for row in rows
        ],
        results={
            row.identity: StoredResult(
                folder=row.folder,
                manifest_sha256=row.manifest_sha256,
                summary=row.summary,
                provenance=row.provenance,
                seconds=max(0.0, row.ended_at - (row.started_at or row.claimed_at)),
            )
            for row in rows
            if row.token is not None
        },
    )
