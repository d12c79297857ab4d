"""Requests of users about sweeps and jobs: cancel, pause, resume, retry, redo, drop."""

import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    case,
    delete,
    func,
    insert,
    select,
    text,
    update,
)

from xsweep.db.breaker import stopped_jobs
from xsweep.db.complete import end_attempts
from xsweep.db.dependencies import (
    ancestors,
    await_again,
    children,
    done_descendants,
    lock,
    move,
    needed_by_sweep,
    reopen,
    skip_descendants,
)
from xsweep.db.events import record, record_jobs
from xsweep.db.explain import find_job, find_sweep
from xsweep.db.schema import (
    BROKEN,
    OPEN,
    Attempt,
    Definition,
    Job,
    Result,
    Score,
    State,
    Sweep,
    SweepJob,
    Tally,
    now_s,
)
from xsweep.db.transaction import among, pieces, reading, transact
from xsweep.errors import ConfigError

AT_ONCE = 10_000
"""Jobs that one transaction cancels or reopens: claims and results wait for it."""
TURN_S = 0.04
"""Pause between two such transactions: who waits for SQLite's lock looks every 0.05 s at first."""


def cancel(engine: Engine, *, sweep: str | int | None = None, job: str | int | None = None) -> int:
    """Cancel a job, or a sweep's jobs that no other sweep needs; returns their number.

    Running attempts end at once: `renew` reports it to their owner. Jobs that need a cancelled one
    are skipped. A large sweep takes several transactions; if they are interrupted, cancel again.
    Raises ConfigError for an unknown sweep or job.
    """

    def close(connection: Connection) -> Sequence[int]:
        id_ = find_sweep(connection, _named(sweep))
        _set_state(connection, id_, "cancelled")
        members = select(Job.id).join(SweepJob).where(SweepJob.sweep_id == id_)
        return connection.scalars(members.where(Job.state.in_(OPEN)).order_by(Job.id.desc())).all()

    if job is not None:
        return transact(engine, lambda connection: _cancel(connection, [find_job(connection, job)]))
    # Children first: a job whose parent is cancelled before it would be skipped.
    return sum(
        transact(engine, partial(_cancel_unneeded, ids=piece))
        for piece in _turns(engine, transact(engine, close))
    )


def pause(engine: Engine, sweep: str | int) -> None:
    """Stop claiming the sweep's jobs, except those of another active sweep.

    Running ones continue. Raises ConfigError for a sweep that is unknown or cancelled.
    """
    transact(engine, lambda connection: _pause_or_resume(connection, sweep, "paused"))


def resume(engine: Engine, sweep: str | int) -> None:
    """Claim a paused sweep's jobs again. Raises ConfigError for an unknown or cancelled one."""
    transact(engine, lambda connection: _pause_or_resume(connection, sweep, "active"))


def retry(
    engine: Engine,
    *,
    sweep: str | int | None = None,
    job: str | int | None = None,
    failures: Collection[str] | None = None,
) -> int:
    """Reopen failed and cancelled jobs, stopped columns and the jobs skipped because of them.

    Returns the number of jobs. `failures` selects those that failed, or were stopped, in these
    classes. A skipped job is reopened with the jobs it needs, unless only cancelled sweeps have it.
    Earlier failures no longer count.
    Many jobs take several transactions; if they are interrupted, retry again. Raises ConfigError
    for an unknown name.
    """

    def chosen(connection: Connection) -> set[int]:
        if job is not None:
            id_ = find_job(connection, job)
            ids = {id_} | ancestors(connection, id_, BROKEN)
            stopped = stopped_jobs(connection, ids)
        else:
            id_ = find_sweep(connection, _named(sweep))
            members = select(Job.id).join(SweepJob).where(SweepJob.sweep_id == id_)
            skipped = connection.scalars(members.where(Job.state == State.SKIPPED)).all()
            stopped = stopped_jobs(connection, skipped)
            ended = members.where(Job.state.in_((State.FAILED, State.CANCELLED)))
            ids = {*connection.scalars(ended).all(), *stopped}
            _set_state(connection, id_, "active", only_from="cancelled")
        if failures is not None:
            failed = select(Job.id).where(Job.failure.in_(list(failures)))
            ids = set(connection.scalars(failed.where(among(connection, Job.id, ids)))) | {
                id_ for id_, failure in stopped.items() if failure in failures
            }
        return ids

    todo = transact(engine, chosen)
    reopened, before = set[int](), -1
    while len(reopened) > before:
        before = len(reopened)
        for piece in _turns(engine, sorted(todo)):
            able, skipped = transact(engine, partial(_reopen, ids=piece))
            reopened |= able
            todo -= able
            todo |= skipped
    return len(reopened)


def _turns(engine: Engine, ids: Sequence[int]) -> Iterator[list[int]]:
    """The jobs of each transaction, with a pause between two in which others get the lock."""
    for number, piece in enumerate(pieces(ids, AT_ONCE)):
        if number and engine.dialect.name == "sqlite":  # PostgreSQL's waiters queue for a row
            time.sleep(TURN_S)
        yield piece


def _reopen(connection: Connection, ids: Collection[int]) -> tuple[set[int], set[int]]:
    able = reopen(connection, ids)
    _reactivate_sweeps(connection, able)
    skipped = children(connection, able, [State.SKIPPED])
    # Those of cancelled sweeps alone stay so, or a retry of one sweep would start another again.
    needed = select(Job.id).where(among(connection, Job.id, skipped), needed_by_sweep(Job.id))
    return able, set(connection.scalars(needed))


class Redone(NamedTuple):
    """The jobs whose results a redo retires, and the time that these took."""

    names: list[str]
    """Names of the job and of the done jobs that depend on it, parents first."""
    seconds: float


def redo(engine: Engine, job: str | int, *, dry_run: bool = False) -> Redone:
    """Retire the result of a done job, and all that were computed from it, to compute them again.

    Running jobs that read such a result end. Retired results stay in the history and in the store.
    Raises ConfigError for a job that is unknown or not done.
    """

    def work(connection: Connection) -> Redone:
        id_ = find_job(connection, job)
        done = done_descendants(connection, id_, locked=not dry_run)
        if not done:
            name, state = connection.execute(select(Job.name, Job.state).filter_by(id=id_)).one()
            hint = f": `xsweep retry --job {id_}` runs it again" if state in BROKEN else ""
            raise ConfigError(f"job {name!r} is {state}, only a done one can be redone{hint}")
        took_s = Attempt.ended_at - func.coalesce(Attempt.started_at, Attempt.claimed_at)
        retired = select(Job.name, *RETIRED, took_s.label("took_s")).join_from(Result, Attempt)
        retired = retired.join(Job).where(among(connection, Job.id, done)).order_by(Job.id)
        rows = connection.execute(retired).mappings().all()
        if not dry_run:
            record(connection, "redone", *({c.key: row[c.key] for c in RETIRED} for row in rows))
            _retire(connection, done)
        return Redone([row["name"] for row in rows], sum(row["took_s"] for row in rows))

    if dry_run:
        with reading(engine) as connection:
            return work(connection)
    return transact(engine, work)


RETIRED = (Result.job_id, Result.token, Result.folder, Result.manifest_sha256)


def _retire(connection: Connection, done: Collection[int]) -> None:
    for table in (Score, Result):
        connection.execute(delete(table).where(among(connection, table.job_id, done)))
    reading_them = among(connection, Attempt.job_id, children(connection, done))
    ended = end_attempts(connection, reading_them & Attempt.outcome.is_(None), "released")
    record(connection, "released", *(lease._asdict() for lease in ended))
    move(connection, done, State.READY, forgiven_token=Job.token, ended_at=None)
    await_again(connection, done)
    _reactivate_sweeps(connection, done)


class Dropped(NamedTuple):
    """The jobs that leave a sweep which is dropped."""

    total: int
    shared: int
    """Those that another sweep has, too."""
    done: int
    cancelled: int
    """Unfinished ones that no other sweep needs."""


def drop(engine: Engine, sweep: str | int, *, dry_run: bool = False) -> Dropped:
    """Remove a sweep; its results, grid texts and history stay, and jobs of other sweeps continue.

    Submitting the grid again finds the results. Raises ConfigError for an unknown sweep.
    """
    with reading(engine) as connection:
        id_ = find_sweep(connection, sweep)
        members = select(SweepJob.job_id).where(SweepJob.sweep_id == id_)
        other = SweepJob.__table__.alias("other").c
        elsewhere = select(other.job_id).where(other.sweep_id != id_)
        unneeded = Job.state.in_(OPEN) & ~needed_by_sweep(Job.id, besides=id_)
        conditions = (Job.id.in_(elsewhere), Job.state == State.DONE, unneeded)
        counts = (func.count(case((condition, 1))) for condition in conditions)
        found = select(func.count(), *counts).where(Job.id.in_(members))
        dropped = Dropped._make(connection.execute(found).one())

    def work(connection: Connection) -> None:
        lock_sweeps(connection)
        remove_members(connection, id_, connection.scalars(members).all())
        _set_state(connection, id_, "cancelled")

    if not dry_run:
        transact(engine, work)
    return dropped


def lock_sweeps(connection: Connection) -> None:
    """Change which jobs sweeps contain in one transaction at a time; SQLite's are always so."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('xsweep_submit'))"))


def remove_members(connection: Connection, sweep_id: int, job_ids: Collection[int]) -> None:
    """Remove jobs from a sweep, and cancel the unfinished ones that no other sweep needs."""
    if not job_ids:
        return
    lock(connection, job_ids)  # a job that moves meanwhile would be counted in two states
    leaving = (SweepJob.sweep_id == sweep_id) & among(connection, SweepJob.job_id, job_ids)
    key = (SweepJob.sweep_id, Job.kind, Job.state)
    counts = select(*key, -func.count(), -func.sum(Definition.cost_s)).join_from(SweepJob, Job)
    counts = counts.join(Definition, Definition.job_id == Job.id).where(leaving).group_by(*key)
    columns = ["sweep_id", "kind", "state", "jobs", "cost_s"]
    connection.execute(insert(Tally).from_select(columns, counts))
    connection.execute(delete(SweepJob).where(leaving))
    record(connection, "removed", {"sweep_id": sweep_id, "jobs": len(job_ids)})
    _cancel_unneeded(connection, job_ids)


def _cancel_unneeded(connection: Connection, ids: Collection[int]) -> int:
    return _cancel(connection, ids, ~needed_by_sweep(Job.id))


def _cancel(connection: Connection, ids: Collection[int], *also: ColumnElement[bool]) -> int:
    still_open = select(Job.id).where(among(connection, Job.id, ids), Job.state.in_(OPEN), *also)
    locked = still_open.order_by(Job.id).with_for_update()  # in ascending order, see `lock`
    cancelled = connection.scalars(locked).all()
    held = among(connection, Attempt.job_id, cancelled) & Attempt.outcome.is_(None)
    end_attempts(connection, held, "cancelled")
    move(connection, cancelled, State.CANCELLED, ended_at=now_s(), retry_at=None)
    record_jobs(connection, "cancelled", cancelled)
    skip_descendants(connection, cancelled, "what it needs was cancelled")
    return len(cancelled)


def _set_state(connection: Connection, id_: int, state: str, only_from: str | None = None) -> None:
    before = connection.scalar(select(Sweep.state).where(Sweep.id == id_).with_for_update())
    if before != state and only_from in (None, before):
        connection.execute(update(Sweep).where(Sweep.id == id_).values(state=state))
        record(connection, state, {"sweep_id": id_, "before": before})


def _pause_or_resume(connection: Connection, sweep: str | int, state: str) -> None:
    id_ = find_sweep(connection, sweep)
    if connection.scalar(select(Sweep.state).where(Sweep.id == id_)) == "cancelled":
        raise ConfigError(f"sweep {sweep!r} is cancelled; `xsweep retry {sweep}` reopens it")
    _set_state(connection, id_, state)


def _reactivate_sweeps(connection: Connection, ids: Collection[int]) -> None:
    """Reopen the cancelled sweeps of jobs that could not be claimed otherwise."""
    sweeps = select(Sweep.id).join(SweepJob).where(Sweep.state == "cancelled")
    sweeps = sweeps.where(among(connection, SweepJob.job_id, ids)).distinct()
    unclaimable = sweeps.where(~needed_by_sweep(SweepJob.job_id))
    for id_ in sorted(connection.scalars(unclaimable)):
        _set_state(connection, id_, "active")


def _named(sweep: str | int | None) -> str | int:
    if sweep is None:
        raise ConfigError("name a sweep or a job")
    return sweep
