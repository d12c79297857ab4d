"""Requests of users about sweeps and jobs: cancel, pause, resume, retry."""

from collections.abc import Collection

from sqlalchemy import Connection, Engine, select, update

from xsweep.db.breaker import stopped_jobs
from xsweep.db.complete import end_attempts
from xsweep.db.dependencies import ancestors, lock, move, needed_by_sweep, reopen, skip_descendants
from xsweep.db.events import record
from xsweep.db.explain import find_job, find_sweep
from xsweep.db.schema import BROKEN, OPEN, Attempt, Job, State, Sweep, SweepJob, now_s
from xsweep.db.transaction import among, transact
from xsweep.errors import ConfigError


def cancel(engine: Engine, *, sweep: str | int | None = None, job: str | int | None = None) -> int:
    """Cancel a job, or a sweep's jobs that no other sweep needs; returns their number.

    Running attempts end at once: `renew` reports it to their owner. Jobs that need a cancelled one
    are skipped. Raises ConfigError for an unknown sweep or job.
    """

    def work(connection: Connection) -> int:
        if job is not None:
            return _cancel(connection, [find_job(connection, job)])
        id_ = find_sweep(connection, _named(sweep))
        _set_state(connection, id_, "cancelled")
        members = select(Job.id).join(SweepJob).where(SweepJob.sweep_id == id_)
        unneeded = members.where(Job.state.in_(OPEN), ~needed_by_sweep(Job.id))
        return _cancel(connection, connection.scalars(unneeded).all())

    return transact(engine, work)


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
    classes. A skipped job is reopened with the jobs it needs. Earlier failures no longer count.
    Raises ConfigError for an unknown name.
    """

    def work(connection: Connection) -> int:
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
            ids = {*connection.scalars(ended), *stopped}
            _set_state(connection, id_, "active", only_from="cancelled")
        if failures is not None:
            failed = select(Job.id).where(Job.failure.in_(list(failures)))
            ids = set(connection.scalars(failed.where(among(connection, Job.id, ids)))) | {
                id_ for id_, failure in stopped.items() if failure in failures
            }
        reopened = reopen(connection, ids)
        _reactivate_sweeps(connection, reopened)
        return len(reopened)

    return transact(engine, work)


def _cancel(connection: Connection, ids: Collection[int]) -> int:
    lock(connection, ids)
    still_open = select(Job.id).where(among(connection, Job.id, ids), Job.state.in_(OPEN))
    cancelled = sorted(connection.scalars(still_open))
    held = among(connection, Attempt.job_id, cancelled) & Attempt.outcome.is_(None)
    end_attempts(connection, held, "cancelled")
    move(connection, cancelled, State.CANCELLED, ended_at=now_s(), retry_at=None)
    record(connection, "cancelled", *({"job_id": id_} for id_ in cancelled))
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
    sweeps = select(SweepJob.sweep_id).where(among(connection, SweepJob.job_id, ids))
    unclaimable = sweeps.where(~needed_by_sweep(SweepJob.job_id)).distinct()
    for id_ in sorted(connection.scalars(unclaimable)):
        _set_state(connection, id_, "active")


def _named(sweep: str | int | None) -> str | int:
    if sweep is None:
        raise ConfigError("name a sweep or a job")
    return sweep
