"""Where every sweep stands, by a few quick queries; the values turn into JSON as they are.

A sweep at a glance: the state of every job under its labels, and what evaluations measured.

Counts of everything that happened, for monitoring: a few sums, and nothing of any single job.

What is left to do, for a controller that must know whether to go on, wait or end.

The processes that claim jobs, and when each was last heard of.

Kept counts: how many jobs of each sweep are in each state, without looking at the jobs.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    Text,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from xsweep.db.events import FailedAttempt, latest_troubles
from xsweep.db.explain import sweep_id
from xsweep.db.schema import (
    Attempt,
    Controller,
    Definition,
    Job,
    Score,
    State,
    Sweep,
    SweepJob,
    Tally,
    now_s,
)
from xsweep.db.transaction import read, reading, transact


@dataclass(frozen=True, kw_only=True)
class Place:
    """A job of a sweep, without what it was told and what it left behind."""

    job_id: int
    kind: str
    name: str
    state: str
    failure: str | None
    labels: dict[str, Any]
    progress: dict[str, Any] | None
    """Of the attempt that runs now."""
    means: dict[str, float] = field(default_factory=dict)
    """By measure, over the queries of an accepted evaluation."""


def overview(engine: Engine, sweep: str | int) -> list[Place]:
    """The sweep's jobs in the order of their ids; no per-query scores are read.

    Raises ConfigError for an unknown sweep.
    """
    with reading(engine) as connection:
        mine = SweepJob.sweep_id == sweep_id(connection, sweep)
        columns = (
            *(Job.id.label("job_id"), Job.kind, Job.name, Job.state, Job.failure),
            *(SweepJob.labels, Attempt.progress),
        )
        live = (Attempt.job_id == Job.id) & Attempt.outcome.is_(None)
        jobs = select(*columns).join_from(SweepJob, Job).outerjoin(Attempt, live).where(mine)
        rows = connection.execute(jobs.order_by(Job.id)).mappings().all()
        scores = select(Score.job_id, Score.measure, Score.mean)
        scores = scores.join(SweepJob, SweepJob.job_id == Score.job_id).where(mine)
        means: dict[int, dict[str, float]] = defaultdict(dict)
        for job_id, measure, mean in connection.execute(scores):
            means[job_id][measure] = mean
    return [Place(**row, means=means.get(row["job_id"], {})) for row in rows]


_ACTIVE = exists().where(
    SweepJob.job_id == Job.id, SweepJob.sweep_id == Sweep.id, Sweep.state == "active"
)


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """Jobs of active sweeps, counted by what stands between them and their end."""

    claimable: int
    running: int
    """By any controller, leases that ran out included."""
    resting: int
    """Ready, but not before their `retry_at`."""
    failed: int
    finished: int
    """This and `total` count a job of two sweeps twice."""
    total: int

    @property
    def idle(self) -> bool:
        """Whether nothing happens any more unless somebody retries, resumes or submits."""
        return not (self.claimable or self.running or self.resting)


class PendingDemand(NamedTuple):
    """So many jobs of a kind may begin, and each asks for this."""

    kind: str
    resources: dict[str, Any]
    jobs: int


def wanted(engine: Engine) -> list[PendingDemand]:
    """What the jobs that may be claimed now ask for, counted; the longest chain of jobs first."""
    # As text: PostgreSQL tells no two values of its JSON apart.
    resources = cast(Definition.resources, Text)
    counted = (
        select(Job.kind, resources.label("resources"), func.count().label("jobs"))
        .join(Definition, Definition.job_id == Job.id)
        .where(Job.state == State.READY, _ACTIVE, _may_run())
        .group_by(Job.kind, resources)
        .order_by(func.max(Job.critical_s).desc(), func.min(Job.id))
    )
    rows = read(engine, lambda connection: connection.execute(counted).all())
    return [PendingDemand(row.kind, json.loads(row.resources), row.jobs) for row in rows]


def outlook(engine: Engine) -> Outlook:
    """Count what is left, by indexes of the jobs that something can happen to."""
    held = select(Attempt.job_id).where(Attempt.outcome.is_(None))
    ready = select(
        func.count(case((_may_run(), 1))).label("claimable"),
        func.count(case((Job.retry_at > now_s(), 1))).label("resting"),
    ).where(Job.state == State.READY, _ACTIVE)
    counted = select(func.count()).select_from(Job).where(_ACTIVE)
    done = func.sum(case((Tally.state == State.DONE, Tally.jobs), else_=0))
    tallied = (
        select(done.label("finished"), func.sum(Tally.jobs).label("total"))
        .join_from(Tally, Sweep, Tally.sweep_id == Sweep.id)
        .where(Sweep.state == "active")
    )

    def work(connection: Connection) -> Outlook:
        finished, total = connection.execute(tallied).one()
        return Outlook(
            **connection.execute(ready).mappings().one(),
            running=connection.scalar(counted.where(Job.id.in_(held))) or 0,
            failed=connection.scalar(counted.where(Job.state == State.FAILED)) or 0,
            finished=int(finished or 0),
            total=int(total or 0),
        )

    return read(engine, work)


def _may_run() -> ColumnElement[bool]:
    return or_(Job.retry_at.is_(None), Job.retry_at <= now_s())


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


SILENT_S = 60.0
"""A controller that beats every 15 s or so and was not heard of for longer is taken for dead."""


@dataclass(frozen=True, kw_only=True)
class LiveController:
    """A controller that was heard of lately."""

    owner: str
    host: str
    pid: int
    dashboard_url: str | None
    started_at: float
    silent_s: float


def register(
    engine: Engine, *, owner: str, host: str, pid: int, dashboard_url: str | None = None
) -> None:
    """Announce a controller; `owner` is a fresh UUID per process, never one used before."""

    def work(connection: Connection) -> None:
        connection.execute(delete(Controller).where(Controller.owner == owner))
        times = {"started_at": now_s(), "heartbeat_at": now_s()}
        row = {"owner": owner, "host": host, "pid": pid, "dashboard_url": dashboard_url}
        connection.execute(insert(Controller).values(**row, **times))

    transact(engine, work)


def beat(engine: Engine, owner: str) -> bool:
    """Say that the controller lives. False: it was unregistered and must stop."""

    def work(connection: Connection) -> bool:
        fold(connection)  # somebody must from time to time, and a controller always lives
        heard = update(Controller).where(Controller.owner == owner).values(heartbeat_at=now_s())
        return connection.execute(heard).rowcount == 1

    return transact(engine, work)


def unregister(engine: Engine, owner: str) -> None:
    """Forget a controller that ends, or that is dead."""
    gone = delete(Controller).where(Controller.owner == owner)
    transact(engine, lambda connection: connection.execute(gone))


def live(engine: Engine) -> list[LiveController]:
    """The controllers heard of in the last `SILENT_S` seconds, the newest first."""
    silence = (now_s() - Controller.heartbeat_at).label("silent_s")
    query = select(
        *(Controller.owner, Controller.host, Controller.pid, Controller.dashboard_url),
        *(Controller.started_at, silence),
    )
    query = query.where(silence <= SILENT_S).order_by(Controller.started_at.desc())
    with reading(engine) as connection:
        return [LiveController(**row) for row in connection.execute(query).mappings()]


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
    troubles: list[FailedAttempt] = field(default_factory=list)
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


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The whole job table in numbers."""

    jobs: dict[tuple[str, str, str], int]
    """By sweep, kind and state; a job of two sweeps counts in both."""
    attempts: dict[str, int]
    """That ended, by outcome; `expired` ones lost their lease."""
    failures: dict[str, int]
    """Attempts that failed or expired, by class."""
    running: dict[str, int]
    """Live attempts by kind."""
    pairs_per_s: dict[str, float]
    """Of the live attempts together, by kind, as their workers told last."""
    queue_age_s: float
    """How long ago the oldest ready job was submitted; 0 where none is."""
    controllers: int
    """Heard of lately."""


def figures(engine: Engine) -> Figures:
    """Counts of the moment; ended attempts are counted anew each time, a scan of their table."""

    def work(connection: Connection) -> Figures:
        names = dict(connection.execute(select(Sweep.id, Sweep.name)).tuples().all())
        ended = select(Attempt.outcome, Attempt.failure, func.count())
        ended = ended.where(Attempt.outcome.is_not(None)).group_by(Attempt.outcome, Attempt.failure)
        attempts: dict[str, int] = defaultdict(int)
        failures: dict[str, int] = defaultdict(int)
        for outcome, failure, count in connection.execute(ended):
            attempts[str(outcome)] += count
            if failure is not None:
                failures[failure] += count
        running: dict[str, int] = defaultdict(int)
        pairs_per_s: dict[str, float] = defaultdict(float)
        live = select(Job.kind, Attempt.progress).join_from(Attempt, Job)
        for kind, progress in connection.execute(live.where(Attempt.outcome.is_(None))):
            running[kind] += 1
            pairs_per_s[kind] += float((progress or {}).get("pairs_per_s") or 0.0)
        oldest = select(func.min(Job.id)).where(Job.state == State.READY).scalar_subquery()
        age_s = connection.scalar(select(now_s() - Job.created_at).where(Job.id == oldest))
        heard = select(func.count()).where(now_s() - Controller.heartbeat_at <= SILENT_S)
        return Figures(
            jobs={
                (names.get(each.sweep_id, str(each.sweep_id)), each.kind, each.state): each.jobs
                for each in read_tally(connection)
            },
            attempts=dict(attempts),
            failures=dict(failures),
            running=dict(running),
            pairs_per_s=dict(pairs_per_s),
            queue_age_s=max(0.0, age_s or 0.0),
            controllers=connection.scalar(heard) or 0,
        )

    return read(engine, work)
