"""The present state of sweeps and jobs, for status pages, metrics and the controller."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, Select, Text, case, cast, delete, func, insert, select
from sqlalchemy.engine import Row

from xsweep.db.claim import MAY_START
from xsweep.db.dependencies import IN_ACTIVE_SWEEP
from xsweep.db.events import FailedAttempt, latest_failures
from xsweep.db.explain import find_sweep
from xsweep.db.schema import (
    OPEN,
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
from xsweep.db.transaction import read, reading

SILENT_S = 60.0
"""A controller without a heartbeat for longer is presumed dead; they beat every few seconds."""

FOLD_ROWS = 2_000
"""Tally rows from which on they are folded: reading this many takes about a millisecond."""

LATEST_DONE = 1_000
"""Newest attempts whose durations are averaged: they say most about the jobs that are left."""

S = TypeVar("S", bound=Select)

TALLY_KEY = (Tally.sweep_id, Tally.kind, Tally.state)


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """A sweep and the number of its jobs by kind and state: {"train": {"done": 3}}."""

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
    cost_s: float = 0.0
    """Expected seconds of the whole job, as planned."""


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """A row of a list of jobs."""

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
class LiveController:
    """A controller with a recent heartbeat."""

    owner: str
    host: str
    pid: int
    dashboard_url: str | None
    started_at: float
    silent_s: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that a status page shows."""

    at: float
    """The database's clock."""
    sweeps: list[SweepStatus]
    running: list[RunningJob]
    failures: list[JobRow]
    """The latest failed jobs, the newest first."""
    mean_s: dict[str, float]
    """Mean seconds from start to result, by kind, of the newest results."""
    controllers: list[LiveController]
    oldest_ready_s: float | None
    """Seconds since the oldest ready job was submitted."""
    pace: dict[str, float] = field(default_factory=dict)
    """Measured seconds per planned second, by kind, of the newest results: the rest of a sweep
    takes about the sum over kinds of its open `cost_s` times the kind's pace."""
    troubles: list[FailedAttempt] = field(default_factory=list)
    """The latest failed attempts, the newest first, also of jobs that are tried again."""


def summary(engine: Engine, sweep: str | int | None = None, *, failures: int = 10) -> Summary:
    """The state of one sweep or of all. Raises ConfigError for an unknown sweep."""
    with reading(engine) as connection:
        only = None if sweep is None else find_sweep(connection, sweep)
        mean_s, pace = _durations(connection)
        return Summary(
            at=connection.scalar(select(now_s())) or 0.0,
            sweeps=_sweeps(connection, only),
            running=_running(connection, only),
            failures=_failures(connection, only, failures),
            mean_s=mean_s,
            pace=pace,
            troubles=latest_failures(connection, failures, only),
            controllers=_live_controllers(connection),
            oldest_ready_s=_oldest_ready_s(connection, only),
        )


def live_controllers(engine: Engine) -> list[LiveController]:
    """The controllers that are alive, the newest first."""
    with reading(engine) as connection:
        return _live_controllers(connection)


def _live_controllers(connection: Connection) -> list[LiveController]:
    silent_s = now_s() - Controller.heartbeat_at
    columns = (Controller.owner, Controller.host, Controller.pid, Controller.dashboard_url)
    query = select(*columns, Controller.started_at, silent_s.label("silent_s"))
    query = query.where(silent_s <= SILENT_S).order_by(Controller.started_at.desc())
    return [LiveController(**row) for row in connection.execute(query).mappings()]


def sweeps(engine: Engine) -> list[SweepStatus]:
    """The counts of every sweep, and nothing else."""
    with reading(engine) as connection:
        return _sweeps(connection, None)


def count_evaluations(engine: Engine, sweep: str | int) -> Counter[str]:
    """The sweep's evaluations by state. Raises ConfigError for an unknown sweep."""
    with reading(engine) as connection:
        tally = read_tally(connection, find_sweep(connection, sweep))
        return Counter({each.state: each.jobs for each in tally if each.kind == "evaluate"})


def list_jobs(
    engine: Engine,
    sweep: str | int | None = None,
    *,
    state: str | None = None,
    kind: str | None = None,
    match: str | None = None,
    limit: int = 1_000,
    failed_first: bool = False,
) -> list[JobRow]:
    """The jobs of one sweep or of all, by id; `match` is a part of their names.

    Raises ConfigError for an unknown sweep.
    """
    order = (Job.state != State.FAILED, Job.id) if failed_first else (Job.id,)
    query = select(*_JOB_ROW).order_by(*order).limit(limit)
    if state is not None:
        query = query.where(Job.state == state)
    if kind is not None:
        query = query.where(Job.kind == kind)
    if match is not None:
        query = query.where(Job.name.contains(match, autoescape=True))
    with reading(engine) as connection:
        query = _of_sweep(query, None if sweep is None else find_sweep(connection, sweep))
        return [JobRow(**row) for row in connection.execute(query).mappings()]


def job_names(engine: Engine, start: str, limit: int = 1_000) -> list[str]:
    """Names of jobs that start with a text."""
    named = select(Job.name).where(Job.name.startswith(start, autoescape=True)).distinct()
    with reading(engine) as connection:
        return list(connection.scalars(named.order_by(Job.name).limit(limit)))


def _of_sweep(query: S, sweep: int | None) -> S:
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
        if row["id"] in counts  # a dropped one has no jobs
    ]


def _running(connection: Connection, only: int | None) -> list[RunningJob]:
    columns = (
        *(Job.id.label("job_id"), Job.identity, Job.kind, Job.name, Attempt.token, Attempt.owner),
        *(Attempt.node, Attempt.log, Attempt.progress),
        (now_s() - Attempt.claimed_at).label("since_s"),
        (Attempt.lease_until - now_s()).label("lease_left_s"),
        Definition.cost_s,
    )
    query = select(*columns).join_from(Attempt, Job).where(Attempt.outcome.is_(None))
    query = query.join(Definition, Definition.job_id == Job.id)
    query = _of_sweep(query, only).order_by(Attempt.claimed_at, Job.id)
    return [RunningJob(**row) for row in connection.execute(query).mappings()]


def _failures(connection: Connection, only: int | None, limit: int) -> list[JobRow]:
    query = _of_sweep(select(*_JOB_ROW).where(Job.state == State.FAILED), only)
    query = query.order_by(Job.ended_at.desc()).limit(limit)
    return [JobRow(**row) for row in connection.execute(query).mappings()]


def _durations(connection: Connection) -> tuple[dict[str, float], dict[str, float]]:
    """Mean seconds and pace of the newest results, by kind."""
    took_s = Attempt.ended_at - func.coalesce(Attempt.started_at, Attempt.claimed_at)
    newest = (
        select(Attempt.job_id, took_s.label("took_s"))
        .where(Attempt.outcome == "done")
        .order_by(Attempt.ended_at.desc())
        .limit(LATEST_DONE)
        .subquery()
    )
    sum_s, planned_s = func.sum(newest.c.took_s), func.sum(Definition.cost_s)
    sums = select(Job.kind, func.count(), sum_s, planned_s).join_from(newest, Job)
    sums = sums.join(Definition, Definition.job_id == Job.id).group_by(Job.kind)
    rows = connection.execute(sums).all()
    return (
        {kind: sum_s / count for kind, count, sum_s, _ in rows},
        {kind: sum_s / planned_s for kind, _, sum_s, planned_s in rows if planned_s > 0},
    )


def _oldest_ready_s(connection: Connection, only: int | None) -> float | None:
    # the smallest id and not the earliest time, which comes to the same: an index has the ids
    oldest = _of_sweep(select(func.min(Job.id)).where(Job.state == State.READY), only)
    age_s = select(now_s() - Job.created_at).where(Job.id == oldest.scalar_subquery())
    return connection.scalar(age_s)


@dataclass(frozen=True, kw_only=True)
class OverviewRow:
    """A job of a sweep, without its spec and its files."""

    job_id: int
    kind: str
    state: str
    labels: dict[str, Any]
    means: dict[str, float] = field(default_factory=dict)
    """Mean over the queries of an accepted evaluation, by measure."""


def overview(engine: Engine, sweep: str | int) -> list[OverviewRow]:
    """The sweep's jobs by id; per-query scores are not read.

    Raises ConfigError for an unknown sweep.
    """
    with reading(engine) as connection:
        member = SweepJob.sweep_id == find_sweep(connection, sweep)
        jobs = select(Job.id.label("job_id"), Job.kind, Job.state, SweepJob.labels)
        jobs = jobs.join_from(SweepJob, Job).where(member).order_by(Job.id)
        rows = connection.execute(jobs).mappings().all()
        scores = select(Score.job_id, Score.measure, Score.mean)
        scores = scores.join(SweepJob, SweepJob.job_id == Score.job_id).where(member)
        means: dict[int, dict[str, float]] = defaultdict(dict)
        for job_id, measure, mean in connection.execute(scores):
            means[job_id][measure] = mean
    return [OverviewRow(**row, means=means.get(row["job_id"], {})) for row in rows]


class JobGroup(NamedTuple):
    """Jobs of a sweep that stand alike and have the same labels but for their seed."""

    kind: str
    state: str
    failure: str | None
    labels: dict[str, Any]
    """Without the seed."""
    jobs: list[tuple[int, str]]
    """The id of each with its seed, or with its name where it has none; in the order of ids."""
    means: Mapping[str, float] = {}
    """By measure: the sum of the jobs' means over queries."""


def groups(engine: Engine, sweep: str | int) -> list[JobGroup]:
    """The sweep's jobs in groups, in the order of their first ids; the database forms them.

    Raises ConfigError for an unknown sweep.
    """
    with reading(engine) as connection:
        labels = func.json_remove(SweepJob.labels, "$.seed").label("labels")
        if connection.dialect.name == "postgresql":
            from sqlalchemy.dialects.postgresql import JSONB  # takes a while, also on SQLite

            labels = cast(cast(SweepJob.labels, JSONB).op("-")("seed"), Text).label("labels")
        seed = func.coalesce(SweepJob.labels["seed"].as_string(), Job.name)
        member = (cast(Job.id, Text) + " " + seed).label("member")
        columns = (labels, Job.kind, Job.state, Job.failure, Job.id, member)
        all_ = select(*columns).join_from(SweepJob, Job)
        job = all_.where(SweepJob.sweep_id == find_sweep(connection, sweep)).subquery().c
        like = (job.labels, job.kind, job.state, job.failure)
        members = func.aggregate_strings(job.member, "\n")
        rows = connection.execute(select(*like, members).group_by(*like)).all()
        sums = select(*like, Score.measure, func.sum(Score.mean)).group_by(*like, Score.measure)
        means: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
        for *group, measure, total in connection.execute(sums.join(Score, Score.job_id == job.id)):
            means[tuple(group)][measure] = total
    found = [
        JobGroup(kind, state, failure, json.loads(key), _members(listed), means[row[:-1]])
        for row in map(tuple, rows)
        for key, kind, state, failure, listed in [row]
    ]
    return sorted(found, key=lambda group: group.jobs[0])


def _members(listed: str) -> list[tuple[int, str]]:
    pairs = (line.split(" ", 1) for line in listed.split("\n"))
    return sorted((int(job_id), label) for job_id, label in pairs)


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The jobs of active sweeps, counted by how they stand."""

    claimable: int
    running: int
    """Held by any controller, expired leases included."""
    resting: int
    """Ready, but not before their `retry_at`."""
    failed: int
    finished: int
    """This and `total` count a job of two sweeps twice."""
    total: int

    @property
    def idle(self) -> bool:
        """True when no job can change unless a user retries, resumes or submits."""
        return not (self.claimable or self.running or self.resting)


def outlook(engine: Engine) -> Outlook:
    """Count the jobs that are left, by the indexes of the states that can change."""
    ready = select(
        func.count(case((MAY_START, 1))).label("claimable"),
        func.count(case((Job.retry_at > now_s(), 1))).label("resting"),
    ).where(Job.state == State.READY, IN_ACTIVE_SWEEP)
    counted = select(func.count()).select_from(Job).where(IN_ACTIVE_SWEEP)
    held = select(Attempt.job_id).where(Attempt.outcome.is_(None))
    done = func.sum(case((Tally.state == State.DONE, Tally.jobs), else_=0))
    tallied = (
        select(done, func.sum(Tally.jobs))
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


def open_resources(engine: Engine) -> dict[str, dict[str, Any]]:
    """The resources of one open job of each kind, by kind."""
    query = select(Job.kind, func.min(cast(Definition.resources, Text)))
    query = query.join(Definition, Definition.job_id == Job.id)
    query = query.where(Job.state.in_(OPEN)).group_by(Job.kind)
    rows = read(engine, lambda connection: connection.execute(query).all())
    return {kind: json.loads(text) for kind, text in rows}


class PendingDemand(NamedTuple):
    """The number of claimable jobs of a kind that request the same resources."""

    kind: str
    resources: dict[str, Any]
    jobs: int


def pending_demand(engine: Engine) -> list[PendingDemand]:
    """The resources that claimable jobs request; the longest chain of jobs first."""
    # as text: PostgreSQL cannot compare two values of its JSON type
    resources = cast(Definition.resources, Text)
    counted = (
        select(Job.kind, resources, func.count())
        .join(Definition, Definition.job_id == Job.id)
        .where(Job.state == State.READY, IN_ACTIVE_SWEEP, MAY_START)
        .group_by(Job.kind, resources)
        .order_by(func.max(Job.critical_s).desc(), func.min(Job.id))
    )
    rows = read(engine, lambda connection: connection.execute(counted).all())
    return [PendingDemand(kind, json.loads(text), jobs) for kind, text, jobs in rows]


def ended_attempts(engine: Engine) -> list[tuple[str, str | None, int]]:
    """The number of ended attempts by outcome and failure class, by a scan of their table."""
    key = (Attempt.outcome, Attempt.failure)
    counted = select(*key, func.count()).where(Attempt.outcome.is_not(None)).group_by(*key)
    with reading(engine) as connection:
        rows = connection.execute(counted)
        return [(str(outcome), failure, count) for outcome, failure, count in rows]


def read_tally(connection: Connection, sweep_id: int | None = None) -> Sequence[Row]:
    """Number (`jobs`) and expected seconds (`cost_s`) of jobs by sweep, kind and state.

    Of one sweep or of all; only numbers that are not zero.
    """
    jobs = func.sum(Tally.jobs)
    query = select(*TALLY_KEY, jobs.label("jobs"), func.sum(Tally.cost_s).label("cost_s"))
    query = query.group_by(*TALLY_KEY).having(jobs != 0).order_by(*TALLY_KEY)
    if sweep_id is not None:
        query = query.where(Tally.sweep_id == sweep_id)
    return connection.execute(query).all()


def fold_tally(connection: Connection) -> None:
    """Replace the rows of equal sweep, kind and state by their sum, once there are many.

    Rows that others append meanwhile are not touched, and of two that fold at the same time the
    second finds the rows gone.
    """
    if (connection.scalar(select(func.count()).select_from(Tally)) or 0) < FOLD_ROWS:
        return
    if connection.dialect.name == "postgresql":
        columns = [*(column.key for column in TALLY_KEY), "jobs", "cost_s"]
        gone = delete(Tally).returning(*TALLY_KEY, Tally.jobs, Tally.cost_s).cte("gone").c
        key = (gone.sweep_id, gone.kind, gone.state)
        jobs = func.sum(gone.jobs)
        sums = select(*key, jobs, func.sum(gone.cost_s)).group_by(*key).having(jobs != 0)
        connection.execute(insert(Tally).from_select(columns, sums))
    else:
        counts = [count._asdict() for count in read_tally(connection)]
        connection.execute(delete(Tally))
        if counts:
            connection.execute(insert(Tally), counts)
