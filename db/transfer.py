"""Export a sweep as it is stored, and import results that another database accepted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, func, insert, select, update

from xsweep.db.claim import Lease
from xsweep.db.complete import NewResult, accept_results
from xsweep.db.events import record
from xsweep.db.explain import find_sweep
from xsweep.db.results import PackedScores, pack_scores
from xsweep.db.schema import Attempt, Definition, Edge, Job, Result, State, Sweep, SweepJob, now_s
from xsweep.db.submit import NewJob, insert_sweep, parents_first
from xsweep.db.transaction import among, pieces, reading, transact

IMPORT_LEASE_S = 60.0

JOB = ("identity", "kind", "name", "spec", "resources", "labels")
RESULT = ("folder", "manifest_sha256", "summary", "provenance")


@dataclass(frozen=True, kw_only=True)
class StoredResult:
    """An accepted result, as it is exported and imported."""

    folder: str
    """Relative to the store's root."""
    manifest_sha256: str
    summary: dict[str, Any]
    provenance: dict[str, Any]
    seconds: float
    """Seconds of the accepted attempt, by the database's clock."""
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """{measure: {query id: value}}; not read by `load_sweep`."""


@dataclass(frozen=True, kw_only=True)
class StoredSweep:
    """A sweep's jobs, parents before children, with the results of those that are done."""

    name: str
    grid: str
    jobs: list[NewJob]
    results: dict[str, StoredResult]
    """Results by the job's identity."""


def load_sweep(engine: Engine, sweep: str) -> StoredSweep:
    """A sweep with everything the database holds of it but scores.

    Raises ConfigError for an unknown one.
    """
    took_s = Attempt.ended_at - func.coalesce(Attempt.started_at, Attempt.claimed_at)
    with reading(engine) as connection:
        id_ = find_sweep(connection, sweep)
        name, grid = connection.execute(select(Sweep.name, Sweep.grid).filter_by(id=id_)).one()
        found = connection.execute(
            select(Job.id, Job.identity, Job.kind, Job.name, SweepJob.labels)
            .add_columns(Definition.spec, Definition.resources, Definition.cost_s)
            .add_columns(*(getattr(Result, name) for name in RESULT), took_s.label("took_s"))
            .join_from(SweepJob, Job)
            .join(Definition, Definition.job_id == Job.id)
            .outerjoin(Result, Result.job_id == Job.id)
            .outerjoin(Attempt, (Attempt.job_id == Job.id) & (Attempt.token == Result.token))
            .where(SweepJob.sweep_id == id_)
            .order_by(Job.id)
        )
        rows = found.mappings().all()
        identities = {row["id"]: row["identity"] for row in rows}
        parents: dict[int, dict[str, str]] = {id_: {} for id_ in identities}
        edges = select(Edge.child_id, Edge.role, Edge.parent_id).order_by(Edge.child_id, Edge.role)
        edges = edges.where(among(connection, Edge.child_id, parents))
        for child_id, role, parent_id in connection.execute(edges):
            parents[child_id][role] = identities[parent_id]
    jobs = [
        NewJob(**{name: row[name] for name in JOB}, parents=parents[row["id"]], cost=row["cost_s"])
        for row in rows
    ]
    results = {
        row["identity"]: StoredResult(
            **{name: row[name] for name in RESULT}, seconds=max(0.0, row["took_s"])
        )
        for row in rows
        if row["folder"] is not None
    }
    return StoredSweep(name=name, grid=grid, jobs=jobs, results=results)


@dataclass(frozen=True, kw_only=True)
class ImportCount:
    """The outcome of an import, in jobs."""

    accepted: int
    known: int
    """Jobs that were done here before; unchanged."""
    refused: int
    """Jobs that run here, or wait for jobs that the archive lacks; left to this database."""


def import_results(
    engine: Engine,
    *,
    name: str,
    grid: str,
    jobs: Sequence[NewJob],
    results: Mapping[str, StoredResult],
    owner: str,
) -> ImportCount:
    """Add a sweep and accept its results, all in one transaction.

    Every result becomes an attempt of its own under `owner`, which distinguishes it in the history
    from results computed here. A job that has a result keeps it. Raises ConfigError as `add_sweep`
    does, and DataError for scores that are not finite.
    """
    ordered = parents_first(jobs)
    collections = {job.identity: str(job.labels.get("collection", "")) for job in jobs}
    packed = {key: pack_scores(each.scores, collections[key]) for key, each in results.items()}

    def work(connection: Connection) -> ImportCount:
        insert_sweep(connection, name, grid, ordered)
        wanted = among(connection, Job.identity, results)
        done = select(func.count()).select_from(Job).where(wanted, Job.state == State.DONE)
        known = connection.scalar(done) or 0
        accepted = 0
        while leases := _claim(connection, results, owner):
            found: list[tuple[NewResult, PackedScores]] = []
            for identity, lease in leases.items():
                stored = {name: getattr(results[identity], name) for name in RESULT}
                found.append((NewResult(lease=lease, **stored), packed[identity]))
            for piece in pieces(found):
                accepted += len(accept_results(connection, piece))
            # From the end back: accepting many results takes seconds itself.
            took = [
                {"job": lease.job_id, "at": lease.token, "took_s": results[identity].seconds}
                for identity, lease in leases.items()
            ]
            connection.execute(_TOOK, took)
        refused = len(results) - accepted - known
        return ImportCount(accepted=accepted, known=known, refused=refused)

    return transact(engine, work)


_BEGAN = Attempt.ended_at - bindparam("took_s")
_TOOK = (
    update(Attempt)
    .where(Attempt.job_id == bindparam("job"), Attempt.token == bindparam("at"))
    .values(claimed_at=_BEGAN, started_at=_BEGAN)
)


def _claim(
    connection: Connection, results: Mapping[str, StoredResult], owner: str
) -> dict[str, Lease]:
    """Claim the jobs of results that are ready now; returns their leases by identity."""
    ready = among(connection, Job.identity, results) & (Job.state == State.READY)
    taken = update(Job).where(ready)
    taken = taken.values(state=State.RUNNING, token=Job.token + 1, retry_at=None)
    rows = connection.execute(taken.returning(Job.identity, Job.id, Job.token)).all()
    leases = {identity: Lease(id_, token, owner) for identity, id_, token in rows}
    times = {"claimed_at": now_s(), "lease_until": now_s() + IMPORT_LEASE_S}
    for identity, lease in leases.items():
        attempt = {**lease._asdict(), "folder": results[identity].folder}
        connection.execute(insert(Attempt).values(**attempt, **times))
        record(connection, "claimed", attempt)
    return leases
