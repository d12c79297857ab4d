"""Where every sweep stands, by a few quick queries; the values turn into JSON as they are."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Select, func, select

from db.clock import now_s
from db.controllers import LiveController, live
from db.lookup import sweep_id
from db.schema import Attempt, Definition, Job, Sweep, SweepJob
from db.states import State
from db.tally import read_tally
from db.transactions import reading
from db.troubles import Trouble, latest_troubles

Q = TypeVar("Q", bound=Select)

LATEST_DONE = 1_000
"""Attempts that the mean durations are taken over: the newest say most about what is to come."""


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """A sweep and how many of its jobs are in each state, by kind: {"train": {"done": 3}}."""

    id: int
    name: str
    state: str
    created_at: float
    counts: dict[str, dict[str, int]]
    total: int
    cost_s: dict[str, dict[str, float]] = field(default_factory=dict)
    """Expected seconds of these jobs together, as planned: {"train": {"done": 360.0}}."""


@dataclass(frozen=True, kw_only=True)
class RunningJob:
    """A job that is held now; times in seconds until now."""

    job_id: int
    identity: str
    kind: str
    name: str
    token: int
    owner: str
    node: str | None
    log: str | None
    progress: dict[str, Any] | None
    since_s: float
    lease_left_s: float


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """A line of a list of jobs."""

    job_id: int
    identity: str
    kind: str
    name: str
    state: str
    token: int
    priority: int
    failure: str | None
    reason: str | None
    ended_at: float | None


_JOB_ROW = (
    *(Job.id.label("job_id"), Job.identity, Job.kind, Job.name, Job.state, Job.token),
    *(Job.priority, Job.failure, Job.reason, Job.ended_at),
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that a status page shows."""

    at: float
    """The database's clock."""
    sweeps: list[SweepStatus]
    running: list[RunningJob]
    failures: list[JobRow]
    """The latest jobs that failed for good, the newest first."""
    mean_s: dict[str, float]
    """Mean seconds from start to result, by kind, of the newest results."""
    controllers: list[LiveController]
    oldest_ready_s: float | None
    """How long ago the oldest ready job was submitted."""
    pace: dict[str, float] = field(default_factory=dict)
    """Measured seconds of one planned second, by kind, of the newest results: what is left of a
    sweep takes about the sum over kinds of its open `cost_s` times the kind's pace."""
    troubles: list[Trouble] = field(default_factory=list)
    """Attempts that failed lately, the newest first, also of jobs that are tried again."""


def summary(engine: Engine, sweep: str | int | None = None, *, failures: int = 10) -> Summary:
    """The state of one sweep or of all. Raises ConfigError for an unknown sweep."""
    with reading(engine) as connection:
        only = None if sweep is None else sweep_id(connection, sweep)
        mean_s, pace = _durations(connection)
        return Summary(
            at=connection.scalar(select(now_s())) or 0.0,
            sweeps=_sweeps(connection, only),
            running=_running(connection, only),
            failures=_failures(connection, only, failures),
            mean_s=mean_s,
            pace=pace,
            troubles=latest_troubles(connection, failures, only),
            controllers=live(engine),
            oldest_ready_s=_oldest_ready_s(connection, only),
        )


def sweeps(engine: Engine) -> list[SweepStatus]:
    """The counts of every sweep, and nothing else."""
    with reading(engine) as connection:
        return _sweeps(connection, None)


def jobs(
    engine: Engine,
    sweep: str | int | None = None,
    *,
    state: str | None = None,
    kind: str | None = None,
    limit: int = 1_000,
) -> list[JobRow]:
    """The jobs of one sweep or of all, by id. Raises ConfigError for an unknown sweep."""
    query = select(*_JOB_ROW).order_by(Job.id).limit(limit)
    if state is not None:
        query = query.where(Job.state == state)
    if kind is not None:
        query = query.where(Job.kind == kind)
    with reading(engine) as connection:
        query = _of_sweep(query, None if sweep is None else sweep_id(connection, sweep))
        return [JobRow(**row) for row in connection.execute(query).mappings()]


def _of_sweep(query: Q, sweep: int | None) -> Q:
    if sweep is None:
        return query
    return query.join(SweepJob, SweepJob.job_id == Job.id).where(SweepJob.sweep_id == sweep)


def _sweeps(connection: Connection, only: int | None) -> list[SweepStatus]:
    listed = select(Sweep.id, Sweep.name, Sweep.state, Sweep.created_at).order_by(Sweep.id)
    if only is not None:
        listed = listed.where(Sweep.id == only)
    counts: dict[int, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    cost_s: dict[int, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for each in read_tally(connection, only):
        counts[each.sweep_id][each.kind][each.state] = each.jobs
        cost_s[each.sweep_id][each.kind][each.state] = each.cost_s
    return [
        SweepStatus(
            **row,
            counts=dict(counts[row["id"]]),
            cost_s=dict(cost_s[row["id"]]),
            total=sum(sum(kind.values()) for kind in counts[row["id"]].values()),
        )
        for row in connection.execute(listed).mappings()
    ]


def _running(connection: Connection, only: int | None) -> list[RunningJob]:
    columns = (
        *(Job.id.label("job_id"), Job.identity, Job.kind, Job.name, Attempt.token, Attempt.owner),
        *(Attempt.node, Attempt.log, Attempt.progress),
        (now_s() - Attempt.claimed_at).label("since_s"),
        (Attempt.lease_until - now_s()).label("lease_left_s"),
    )
    query = select(*columns).join_from(Attempt, Job).where(Attempt.outcome.is_(None))
    query = _of_sweep(query, only).order_by(Attempt.claimed_at, Job.id)
    return [RunningJob(**row) for row in connection.execute(query).mappings()]


def _failures(connection: Connection, only: int | None, limit: int) -> list[JobRow]:
    query = _of_sweep(select(*_JOB_ROW).where(Job.state == State.FAILED), only)
    query = query.order_by(Job.ended_at.desc()).limit(limit)
    return [JobRow(**row) for row in connection.execute(query).mappings()]


def _durations(connection: Connection) -> tuple[dict[str, float], dict[str, float]]:
    """Mean seconds and pace of the newest results, by kind."""
    newest = (
        select(
            Attempt.job_id,
            (Attempt.ended_at - func.coalesce(Attempt.started_at, Attempt.claimed_at)).label(
                "took_s"
            ),
        )
        .where(Attempt.outcome == "done")
        .order_by(Attempt.ended_at.desc())
        .limit(LATEST_DONE)
        .subquery()
    )
    took_s, planned_s = func.sum(newest.c.took_s), func.sum(Definition.cost_s)
    sums = select(Job.kind, func.count(), took_s, planned_s).join_from(newest, Job)
    sums = sums.join(Definition, Definition.job_id == Job.id).group_by(Job.kind)
    rows = connection.execute(sums).all()
    return (
        {kind: took_s / count for kind, count, took_s, _ in rows},
        {kind: took_s / planned_s for kind, _, took_s, planned_s in rows if planned_s > 0},
    )


def _oldest_ready_s(connection: Connection, only: int | None) -> float | None:
    # the smallest id and not the earliest time, which comes to the same: an index has the ids
    oldest = _of_sweep(select(func.min(Job.id)).where(Job.state == State.READY), only)
    return connection.scalar(
        select(now_s() - Job.created_at).where(Job.id == oldest.scalar_subquery())
    )
