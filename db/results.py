"""Results: scores as they are stored; cells of a report, costs, durations, and folders to read."""

import hashlib
import json
import math
import struct
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, Engine, func, insert, select, text

from xsweep.db.explain import find_sweep
from xsweep.db.schema import Attempt, Definition, Edge, Job, QuerySet, Result, Score, SweepJob
from xsweep.db.transaction import among, in_binary, pieces, reading, to_json
from xsweep.errors import DataError

if TYPE_CHECKING:
    import numpy as np

SCORED_JOBS = 100
"""Jobs whose scores one statement reads."""

NEWEST = 1_000
"""Results whose durations are read."""


class ParentResult(NamedTuple):
    """The result of a cell's parent; summary and provenance are empty until it is done."""

    identity: str
    summary: dict[str, Any]
    provenance: dict[str, Any]
    name: str = ""
    folder: str = ""
    """Relative to the store's root, as that of a cell."""
    manifest_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A job of a sweep and, when it is done, its measurements."""

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
    """Parents by role."""
    folder: str = ""
    """Folder of the accepted attempt, relative to the store's root."""
    manifest_sha256: str = ""
    """SHA-256 of the folder's manifest, the list of its files with their checksums."""


_RESULT = (
    *(Result.job_id, Result.summary, Result.provenance),
    func.coalesce(Result.folder, "").label("folder"),
    func.coalesce(Result.manifest_sha256, "").label("manifest_sha256"),
)
_NO_RESULT: dict[str, Any] = {"summary": {}, "provenance": {}}
_NO_SCORES: dict[str, Any] = {"means": {}, "scores": {}, "query_ids": ()}


def load_cells(
    engine: Engine,
    sweep: str | int,
    measures: Sequence[str] | None = None,
    kind: str = "evaluate",
    job_ids: Collection[int] | None = None,
) -> list[Cell]:
    """The sweep's jobs of a kind by id, in any state; `job_ids` limits them.

    `measures` limits means and scores. Raises ConfigError for an unknown sweep.
    """
    columns = (
        *(Job.id.label("job_id"), Job.identity, Job.name, SweepJob.labels, Job.state),
        *(Job.failure, Job.reason),
    )
    with reading(engine) as connection:
        member = SweepJob.sweep_id == find_sweep(connection, sweep)
        members = select(*columns).join_from(SweepJob, Job).where(member, Job.kind == kind)
        if job_ids is not None:
            members = members.where(among(connection, Job.id, job_ids))
        rows = connection.execute(members.order_by(Job.id)).mappings().all()
        parents = _parents(connection, [row["job_id"] for row in rows])
        results = _results(connection, [row["job_id"] for row in rows])
        scores = _scores(connection, list(results), measures)
    return [
        Cell(
            **row,
            **scores.get(row["job_id"], _NO_SCORES),
            **results.get(row["job_id"], _NO_RESULT),
            parents_summary=parents.get(row["job_id"], {}),
        )
        for row in rows
    ]


class Training(NamedTuple):
    """A training of a sweep, in any state."""

    identity: str
    name: str
    labels: dict[str, Any]
    state: str
    spec: dict[str, Any]
    folder: str | None
    """Folder of the newest attempt, relative to the store's root."""


def load_trainings(engine: Engine, sweep: str | int) -> list[Training]:
    """The sweep's trainings by id. Raises ConfigError for an unknown sweep."""
    newest = (Attempt.job_id == Job.id) & (Attempt.token == Job.token)
    columns = (Job.identity, Job.name, SweepJob.labels, Job.state, Definition.spec, Attempt.folder)
    with reading(engine) as connection:
        trainings = (
            select(*columns)
            .join_from(SweepJob, Job)
            .join(Definition, Definition.job_id == Job.id)
            .outerjoin(Attempt, newest)
            .where(SweepJob.sweep_id == find_sweep(connection, sweep), Job.kind == "train")
            .order_by(Job.id)
        )
        return [Training(*row) for row in connection.execute(trainings)]


def _results(connection: Connection, job_ids: Collection[int]) -> dict[int, dict[str, Any]]:
    """The results of those jobs that have one: fields of a cell and of a parent."""
    stored = select(*_RESULT).where(among(connection, Result.job_id, job_ids))
    rows = map(dict, connection.execute(stored).mappings())
    return {row.pop("job_id"): row for row in rows}


def _scores(
    connection: Connection, job_ids: list[int], measures: Sequence[str] | None
) -> dict[int, dict[str, Any]]:
    """The `means`, `scores` and `query_ids` of each cell that has some."""
    import numpy as np

    found: dict[int, dict[str, Any]] = {}
    query_ids: dict[int, tuple[str, ...]] = {}
    # a driver keeps a whole reply in memory: many megabytes for some thousand jobs
    for piece in pieces(job_ids, SCORED_JOBS):
        stored = select(Score.job_id, Score.measure, Score.query_set_id, Score.packed, Score.mean)
        stored = stored.where(Score.job_id.in_(piece)).order_by(Score.job_id, Score.measure)
        if measures is not None:
            stored = stored.where(Score.measure.in_(list(measures)))
        for job_id, measure, set_id, packed, mean in in_binary(connection, stored):
            if set_id not in query_ids:
                ids = connection.scalar(select(QuerySet.query_ids).where(QuerySet.id == set_id))
                query_ids[set_id] = tuple(ids or ())
            cell = found.setdefault(job_id, {"means": {}, "scores": {}})
            cell["means"][measure] = mean
            cell["scores"][measure] = np.frombuffer(packed, "<f8")
            cell["query_ids"] = query_ids[set_id]
    return found


def _parents(connection: Connection, job_ids: list[int]) -> dict[int, dict[str, ParentResult]]:
    needed = select(Edge.child_id, Edge.role, Edge.parent_id).order_by(Edge.role)
    edges = connection.execute(needed.where(among(connection, Edge.child_id, job_ids))).all()
    # a training is the parent of all its evaluations: read each once
    parent_ids = {edge.parent_id for edge in edges}
    results = _results(connection, parent_ids)
    named = select(Job.id, Job.identity, Job.name).where(among(connection, Job.id, parent_ids))
    parents = {
        id_: ParentResult(identity=identity, name=name, **results.get(id_, _NO_RESULT))
        for id_, identity, name in connection.execute(named)
    }
    found: dict[int, dict[str, ParentResult]] = defaultdict(dict)
    for child_id, role, parent_id in edges:
        found[child_id][role] = parents[parent_id]
    return found


def measures(engine: Engine) -> list[str]:
    """Names of the measures that are stored, of any sweep."""
    with reading(engine) as connection:
        return list(connection.scalars(select(Score.measure).distinct().order_by(Score.measure)))


def done_identities(engine: Engine, identities: Collection[str]) -> frozenset[str]:
    """Those of the identities whose job has an accepted result."""
    with reading(engine) as connection:
        done = select(Job.identity).join(Result, Result.job_id == Job.id)
        known = among(connection, Job.identity, identities)
        return frozenset(connection.scalars(done.where(known)))


@dataclass(frozen=True, kw_only=True)
class JobCost:
    """The cost of a job that ran; times in seconds by the database's clock."""

    job_id: int
    kind: str
    labels: dict[str, Any]
    gpus: float
    """GPUs reserved for each attempt."""
    cpus: float
    seconds: float
    """Seconds of the attempt whose result was accepted, from its start; 0 when there is none."""
    lost_s: float
    """Seconds of all other attempts."""


def load_costs(engine: Engine, sweep: str | int) -> list[JobCost]:
    """The sweep's jobs that had an attempt, by id; live attempts do not count.

    Raises ConfigError for an unknown sweep.
    """
    with reading(engine) as connection:
        member = SweepJob.sweep_id == find_sweep(connection, sweep)
        jobs = connection.execute(
            select(Job.id, Job.kind, SweepJob.labels, Definition.resources, Result.token)
            .join_from(SweepJob, Job)
            .join(Definition, Definition.job_id == Job.id)
            .outerjoin(Result, Result.job_id == Job.id)
            .where(member)
            .order_by(Job.id)
        ).all()
        attempts = connection.execute(
            select(Attempt.job_id, Attempt.token, Attempt.started_at, Attempt.ended_at)
            .join(SweepJob, SweepJob.job_id == Attempt.job_id)
            .where(member, Attempt.ended_at.is_not(None), Attempt.started_at.is_not(None))
            .order_by(Attempt.token)
        ).all()
    spent: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for id_, token, started_at, ended_at in attempts:
        spent[id_].append((token, max((ended_at or 0.0) - (started_at or 0.0), 0.0)))
    return [
        JobCost(
            job_id=job.id,
            kind=job.kind,
            labels=job.labels,
            gpus=float(job.resources.get("gpus", 0)) * int(job.resources.get("ranks", 1)),
            cpus=float(job.resources.get("cpus", 0)) * int(job.resources.get("ranks", 1)),
            seconds=sum(seconds for token, seconds in spent[job.id] if token == job.token),
            lost_s=sum(seconds for token, seconds in spent[job.id] if token != job.token),
        )
        for job in jobs
        if job.id in spent
    ]


@dataclass(frozen=True, kw_only=True)
class Duration:
    """The time of an accepted result by the database's clock, from start to end of its worker."""

    kind: str
    spec: dict[str, Any]
    parents: dict[str, dict[str, Any]]
    """Specs of the parents, by role."""
    resources: dict[str, Any]
    hardware: dict[str, Any]
    """The hardware in the result's provenance; may be empty."""
    seconds: float


def load_durations(engine: Engine) -> list[Duration]:
    """The newest results that were computed here; at most NEWEST."""
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
        parents: dict[int, dict[str, dict[str, Any]]] = {row.id: {} for row in rows}
        edges = (
            select(Edge.child_id, Edge.role, Definition.spec)
            .join_from(Edge, Definition, Edge.parent_id == Definition.job_id)
            .where(among(connection, Edge.child_id, parents))
        )
        for child_id, role, spec in connection.execute(edges):
            parents[child_id][role] = spec
    return [
        Duration(
            kind=row.kind,
            spec=row.spec,
            parents=parents[row.id],
            resources=row.resources,
            hardware=(row.provenance or {}).get("hardware", {}),
            seconds=max(0.0, row.took_s),
        )
        for row in rows
    ]


@dataclass(frozen=True, kw_only=True)
class AttemptFolder:
    """The folder of an attempt, relative to the store's root."""

    identity: str
    name: str
    folder: str
    live: bool
    accepted: bool
    job_done: bool
    manifest_sha256: str | None
    """Checksum of the manifest that was accepted for the job, whichever attempt's it is."""


def load_folders(engine: Engine) -> list[AttemptFolder]:
    """The folders of all attempts that have one, by job and token."""
    query = (
        select(Job.identity, Job.name, Attempt.folder, Attempt.outcome.is_(None).label("live"))
        .add_columns(func.coalesce(Result.token == Attempt.token, False).label("accepted"))
        .add_columns(Result.token.is_not(None).label("job_done"), Result.manifest_sha256)
        .join_from(Attempt, Job)
        .outerjoin(Result, Result.job_id == Job.id)
        .where(Attempt.folder.is_not(None))
        .order_by(Attempt.job_id, Attempt.token)
    )
    with reading(engine) as connection:
        return [AttemptFolder(**row) for row in connection.execute(query).mappings()]


@dataclass(frozen=True, kw_only=True)
class PackedScores:
    """The scores of one evaluation, ready to be stored."""

    name: str
    query_ids: tuple[str, ...]
    """Ascending; the order of the values in every array."""
    arrays: dict[str, bytes]
    means: dict[str, float]


def pack_scores(scores: Mapping[str, Mapping[str, float]], name: str) -> PackedScores:
    """Pack {measure: {query id: value}}; `name` is the collection's.

    {"nDCG@10": {"q2": 0.5, "q1": 1.0}} packs 1.0 and 0.5, of q1 and q2; their mean is 0.75. Raises
    DataError when measures cover different queries, or none, or a value is not finite.
    """
    for measure, values in scores.items():
        if not isinstance(values, Mapping):
            raise DataError(f"scores of {name}: {measure} is {values!r:.40}, not a value per query")
    query_ids = tuple(sorted(next(iter(scores.values()), ())))
    arrays: dict[str, bytes] = {}
    means: dict[str, float] = {}
    for measure, values in scores.items():
        if values.keys() != set(query_ids) or not values:
            raise DataError(
                f"scores of {name}: {measure} has {len(values)} queries where the first measure has"
                f" {len(query_ids)}; every measure needs a value for every query of the qrels"
            )
        for query_id, value in values.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise DataError(f"scores of {name}: {measure} of query {query_id} is {value!r:.40}")
        ordered = [float(values[query_id]) for query_id in query_ids]
        arrays[measure] = struct.pack(f"<{len(ordered)}d", *ordered)
        means[measure] = math.fsum(ordered) / len(ordered)
    return PackedScores(name=name, query_ids=query_ids, arrays=arrays, means=means)


def store_scores(connection: Connection, job_id: int, packed: PackedScores) -> None:
    """Insert the arrays of an accepted result."""
    if not packed.arrays:
        return
    set_id = _query_set(connection, packed.name, packed.query_ids)
    rows = [
        {"job_id": job_id, "measure": measure, "query_set_id": set_id, "packed": array}
        | {"mean": packed.means[measure]}
        for measure, array in packed.arrays.items()
    ]
    connection.execute(insert(Score), rows)


def checksum_scores(packed: PackedScores) -> str | None:
    """The checksum of an evaluation's scores, None when there are none."""
    if not packed.arrays:
        return None
    digest = digest_query_ids(packed.query_ids)
    return checksum_arrays((measure, digest, array) for measure, array in packed.arrays.items())


def checksum_arrays(scores: Iterable[tuple[str, str, bytes]]) -> str:
    """SHA-256 over (measure, digest of its query ids, array), in the order of the measures."""
    checksum = hashlib.sha256()
    for measure, digest, array in sorted(scores):
        checksum.update(f"{measure}\0{digest}\0{len(array)}\0".encode())
        checksum.update(array)
    return checksum.hexdigest()


def digest_query_ids(query_ids: Iterable[str]) -> str:
    """SHA-256 of the ids as a JSON list."""
    return hashlib.sha256(json.dumps(list(query_ids)).encode()).hexdigest()


def _query_set(connection: Connection, name: str, query_ids: tuple[str, ...]) -> int:
    digest = digest_query_ids(query_ids)
    known = select(QuerySet.id).where(QuerySet.digest == digest)
    if (found := connection.scalar(known)) is not None:
        return found
    row = {"digest": digest, "name": name, "query_ids": to_json(query_ids)}
    new = "INSERT INTO query_set (digest, name, query_ids) VALUES (:digest, :name, :query_ids)"
    connection.execute(text(f"{new} ON CONFLICT DO NOTHING"), row)
    return connection.scalar(known)  # type: ignore[return-value]
