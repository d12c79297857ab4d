"""What people decide about sweeps and jobs: cancel, pause, resume, retry."""

from collections.abc import Collection

from sqlalchemy import Connection, Engine, exists, select, update

from xsweep.db.breaker import stopped_jobs
from xsweep.db.dependencies import ancestors, lock, move, reopen, skip_descendants
from xsweep.db.events import record
from xsweep.db.explain import job_id, sweep_id
from xsweep.db.schema import OPEN, Attempt, Job, State, Sweep, SweepJob, now_s
from xsweep.db.transaction import pieces, transact
from xsweep.errors import ConfigError


def cancel(engine: Engine, *, sweep: str | int | None = None, job: str | int | None = None) -> int:
    """Cancel a job, or a sweep's jobs that no other sweep needs; returns how many.

    Running attempts end here and now: `renew` tells their owner. What waits for a cancelled job is
    skipped. Raises ConfigError for an unknown sweep or job.
    """

    def work(connection: Connection) -> int:
        if job is not None:
            ids = {job_id(connection, job)}
        else:
            id_ = sweep_id(connection, _one(sweep))
            _set_state(connection, id_, "cancelled")
            needed = exists().where(
                _other.c.job_id == Job.id, _other.c.sweep_id == Sweep.id, Sweep.state != "cancelled"
            )
            members = select(Job.id).join(SweepJob).where(SweepJob.sweep_id == id_, ~needed)
            ids = set(connection.scalars(members.where(Job.state.in_(OPEN))))
        return _cancel(connection, ids)

    return transact(engine, work)


def pause(engine: Engine, sweep: str | int) -> None:
    """Stop claiming the sweep's jobs, but for those that another active sweep has.

    Running ones go on. Raises ConfigError for a sweep that is unknown or cancelled.
    """
    transact(engine, lambda c: _pause_or_resume(c, sweep, "paused"))


def resume(engine: Engine, sweep: str | int) -> None:
    """Claim a paused sweep's jobs again. Raises ConfigError for an unknown or cancelled one."""
    transact(engine, lambda c: _pause_or_resume(c, sweep, "active"))


def retry(
    engine: Engine,
    *,
    sweep: str | int | None = None,
    job: str | int | None = None,
    failures: Collection[str] | None = None,
) -> int:
    """Let failed and cancelled jobs, stopped columns and what was skipped for them, try again.

    Returns how many jobs. With `failures` only what failed, or was stopped, in these classes. A
    skipped job is retried by retrying what it needs. Earlier failures no longer count. Raises
    ConfigError for an unknown name.
    """

    def work(connection: Connection) -> int:
        if job is not None:
            id_ = job_id(connection, job)
            ids = {id_} | ancestors(connection, id_, (State.FAILED, State.CANCELLED, State.SKIPPED))
            stopped = stopped_jobs(connection, ids)
        else:
            swept = sweep_id(connection, _one(sweep))
            members = select(SweepJob.job_id).where(SweepJob.sweep_id == swept)
            ended = (State.FAILED, State.CANCELLED)
            ids = set(connection.scalars(members.join(Job).where(Job.state.in_(ended))))
            skipped = connection.scalars(members.join(Job).where(Job.state == State.SKIPPED))
            stopped = stopped_jobs(connection, skipped.all())
            ids |= stopped.keys()
            _set_state(connection, swept, "active", since="cancelled")
        if failures is not None:
            chosen = select(Job.id).where(Job.failure.in_(list(failures)))
            ids &= {
                id_
                for piece in pieces(sorted(ids))
                for id_ in connection.scalars(chosen.where(Job.id.in_(piece)))
            } | {id_ for id_, failure in stopped.items() if failure in failures}
        reopened = reopen(connection, ids)
        _revive_sweeps(connection, reopened)
        return len(reopened)

    return transact(engine, work)


_other = SweepJob.__table__.alias("other")


def _cancel(connection: Connection, ids: Collection[int]) -> int:
    lock(connection, ids)
    cancelled: set[int] = set()
    for piece in pieces(sorted(ids)):
        still_open = select(Job.id).where(Job.id.in_(piece), Job.state.in_(OPEN))
        cancelled |= set(connection.scalars(still_open))
    for piece in pieces(sorted(cancelled)):
        held = update(Attempt).where(Attempt.job_id.in_(piece), Attempt.outcome.is_(None))
        ended = {"outcome": "cancelled", "ended_at": now_s(), "lease_until": None}
        connection.execute(held.values(ended))
    move(connection, cancelled, State.CANCELLED, ended_at=now_s(), retry_at=None)
    record(connection, "cancelled", *({"job_id": id_} for id_ in sorted(cancelled)))
    skip_descendants(connection, cancelled, "what it needs was cancelled")
    return len(cancelled)


def _set_state(connection: Connection, id_: int, state: str, since: str | None = None) -> None:
    locked = select(Sweep.state).where(Sweep.id == id_).with_for_update()
    before = connection.scalar(locked)
    if before != state and since in (None, before):
        connection.execute(update(Sweep).where(Sweep.id == id_).values(state=state))
        record(connection, state, {"sweep_id": id_, "before": before})


def _pause_or_resume(connection: Connection, sweep: str | int, state: str) -> None:
    id_ = sweep_id(connection, sweep)
    if connection.scalar(select(Sweep.state).where(Sweep.id == id_)) == "cancelled":
        raise ConfigError(f"sweep {sweep!r} is cancelled; `xsweep retry {sweep}` reopens it")
    _set_state(connection, id_, state)


def _revive_sweeps(connection: Connection, ids: Collection[int]) -> None:
    """Reopen the cancelled sweeps of jobs that no other sweep would let be claimed."""
    revived: set[int] = set()
    for piece in pieces(sorted(ids)):
        alive = exists().where(
            _other.c.job_id == SweepJob.job_id,
            _other.c.sweep_id == Sweep.id,
            Sweep.state != "cancelled",
        )
        found = select(SweepJob.sweep_id).where(SweepJob.job_id.in_(piece), ~alive)
        revived |= set(connection.scalars(found.distinct()))
    for id_ in sorted(revived):
        _set_state(connection, id_, "active")


def _one(sweep: str | int | None) -> str | int:
    if sweep is None:
        raise ConfigError("name a sweep or a job")
    return sweep
