"""Reading results: every cell of a sweep, with numbers only where a result was accepted.

What the jobs of a sweep took: the time of all attempts, lost ones too, and the resources.

How long the newest finished jobs took, with what they were and where they ran.

Which attempt wrote which folder, and what became of it and of its job.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, Engine, func, select

from xsweep.db.explain import sweep_id
from xsweep.db.schema import (
    Attempt,
    Definition,
    Edge,
    Job,
    QuerySet,
    Result,
    Score,
    State,
    SweepJob,
)
from xsweep.db.transaction import in_binary, pieces, reading

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


def done_identities(engine: Engine, identities: Iterable[str]) -> frozenset[str]:
    """Those of the identities whose job has an accepted result."""
    found: set[str] = set()
    with reading(engine) as connection:
        for piece in pieces(list(identities)):
            done = select(Job.identity).where(Job.identity.in_(piece), Job.state == State.DONE)
            found.update(connection.scalars(done))
    return frozenset(found)


@dataclass(frozen=True, kw_only=True)
class JobCost:
    """One job that ran; times in seconds by the database's clock."""

    job_id: int
    kind: str
    labels: dict[str, Any]
    gpus: float
    """Reserved for each attempt."""
    cpus: float
    seconds: float
    """Of the attempt whose result was accepted, from its start; 0 when there is none."""
    lost_s: float
    """Of attempts that ended otherwise."""


def load_costs(engine: Engine, sweep: str | int) -> list[JobCost]:
    """The sweep's jobs that had an attempt, in the order of their ids.

    An attempt that runs now is not counted. Raises ConfigError for an unknown sweep.
    """
    with reading(engine) as connection:
        jobs = connection.execute(
            select(Job.id, Job.kind, SweepJob.labels, Definition.resources, Result.token)
            .join_from(SweepJob, Job)
            .join(Definition, Definition.job_id == Job.id)
            .outerjoin(Result, Result.job_id == Job.id)
            .where(SweepJob.sweep_id == sweep_id(connection, sweep))
            .order_by(Job.id)
        ).all()
        spent: dict[int, list[tuple[int, float]]] = {}
        for piece in pieces([job.id for job in jobs]):
            tries = select(Attempt.job_id, Attempt.token, Attempt.started_at, Attempt.ended_at)
            for id_, token, started_at, ended_at in connection.execute(
                tries.where(Attempt.job_id.in_(piece), Attempt.ended_at.is_not(None))
            ):
                if started_at is not None and ended_at is not None:
                    spent.setdefault(id_, []).append((token, max(ended_at - started_at, 0.0)))
    return [
        JobCost(
            job_id=job.id,
            kind=job.kind,
            labels=job.labels,
            gpus=float(job.resources.get("gpus", 0)) * int(job.resources.get("ranks", 1)),
            cpus=float(job.resources.get("cpus", 0)) * int(job.resources.get("ranks", 1)),
            seconds=sum(s for token, s in spent[job.id] if token == job.token),
            lost_s=sum(s for token, s in spent[job.id] if token != job.token),
        )
        for job in jobs
        if job.id in spent
    ]


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


@dataclass(frozen=True, kw_only=True)
class AttemptFolder:
    """One attempt's folder, below the store's root."""

    identity: str
    name: str
    folder: str
    live: bool
    accepted: bool
    job_done: bool


def load_folders(engine: Engine) -> list[AttemptFolder]:
    """The folders of all attempts that noted one, by job and token."""
    query = (
        select(Job.identity, Job.name, Job.state, Attempt.folder, Attempt.outcome, Attempt.token)
        .add_columns(Result.token.label("accepted"))
        .join_from(Attempt, Job)
        .outerjoin(Result, Result.job_id == Job.id)
        .where(Attempt.folder.is_not(None))
        .order_by(Attempt.job_id, Attempt.token)
    )
    with reading(engine) as connection:
        return [
            AttemptFolder(
                identity=row.identity,
                name=row.name,
                folder=row.folder,
                live=row.outcome is None,
                accepted=row.accepted == row.token,
                job_done=row.state == State.DONE,
            )
            for row in connection.execute(query)
        ]
