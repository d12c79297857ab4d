"""A sweep as it is stored: grid, jobs, and accepted results, for an archive.

Results that another database accepted, taken over as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update

from xsweep.db.claim import Lease
from xsweep.db.complete import NewResult, accept_results
from xsweep.db.events import record
from xsweep.db.explain import sweep_id
from xsweep.db.schema import Attempt, Definition, Edge, Job, Result, State, Sweep, SweepJob, now_s
from xsweep.db.scores import PackedScores, pack_scores
from xsweep.db.submit import NewJob, add_in, parents_first
from xsweep.db.transaction import pieces, reading, transact


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


@dataclass(frozen=True, kw_only=True)
class ImportCount:
    """What became of the results, in jobs."""

    accepted: int
    known: int
    """Were done here before; nothing of them changed."""
    refused: int
    """Are running here, or wait for work that the archive does not hold: left to this database."""


def import_results(
    engine: Engine,
    *,
    name: str,
    grid: str,
    jobs: Sequence[NewJob],
    results: Mapping[str, StoredResult],
    owner: str,
) -> ImportCount:
    """Add a sweep and accept its results, in one transaction: all of it, or nothing.

    Every result becomes an attempt of its own under `owner`, so that the history tells it from what
    was computed here. A job that has a result keeps it. Raises ConfigError as `add_sweep` does, and
    DataError for scores that are not finite.
    """
    ordered = parents_first(jobs)
    places = {job.identity: str(job.labels.get("collection", "")) for job in jobs}
    packed = {key: pack_scores(each.scores, places[key]) for key, each in results.items()}

    def work(connection: Connection) -> ImportCount:
        add_in(connection, name, grid, ordered)
        known = _count(connection, list(results), State.DONE)
        accepted = 0
        while ready := _take(connection, list(results), owner, results):
            found: list[tuple[NewResult, PackedScores]] = []
            for row in ready:
                result = results[row.identity]
                told = NewResult(
                    lease=Lease(row.id, row.token, owner),
                    folder=result.folder,
                    manifest_sha256=result.manifest_sha256,
                    summary=result.summary,
                    provenance=result.provenance,
                )
                found.append((told, packed[row.identity]))
            for piece in pieces(found):
                accepted += len(accept_results(connection, piece))
        refused = len(results) - accepted - known
        return ImportCount(accepted=accepted, known=known, refused=refused)

    return transact(engine, work)


def _take(
    connection: Connection, identities: list[str], owner: str, results: Mapping[str, StoredResult]
) -> list[Any]:
    """Claim the jobs that are ready now; each result is an attempt that took as long as it did."""
    taken: list[Any] = []
    for piece in pieces(identities):
        claimed = (
            update(Job)
            .where(Job.identity.in_(piece), Job.state == State.READY)
            .values(state=State.RUNNING, token=Job.token + 1, retry_at=None)
            .returning(Job.id, Job.identity, Job.token)
        )
        taken += connection.execute(claimed).all()
    for row in taken:
        result = results[row.identity]
        attempt = {"job_id": row.id, "token": row.token, "owner": owner, "folder": result.folder}
        times = {
            "claimed_at": now_s() - result.seconds,
            "started_at": now_s() - result.seconds,
            "lease_until": now_s() + 60,
        }
        connection.execute(insert(Attempt).values(**attempt, **times))
        record(connection, "claimed", attempt)
    return taken


def _count(connection: Connection, identities: list[str], state: State) -> int:
    found = 0
    for piece in pieces(identities):
        there = select(Job.id).where(Job.identity.in_(piece), Job.state == state)
        found += len(connection.scalars(there).all())
    return found
