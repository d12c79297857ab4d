"""How an attempt ends without a result: it fails, or it is given back."""

from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, func, select, update

from db.clock import now_s
from db.columns import stop_columns
from db.events import record
from db.family import lock, move, skip_descendants
from db.leases import Hold, live
from db.schema import Attempt, Job
from db.states import RETRIES, State, backoff_s
from db.transactions import transact

REASON_CHARACTERS = 10_000


def fail(
    engine: Engine,
    *,
    job_id: int,
    token: int,
    failure: str,
    reason: str,
    retry_after_s: float | None = None,
    owner: str | None = None,
) -> str | None:
    """End the attempt in a failure class of `db.states.RETRIES`; returns the job's new state.

    "ready" with a wait (`retry_after_s`, or one that grows) while the class allows, else "failed",
    and what needs the job is skipped, as is a column of the grid that fails throughout. None: the
    attempt is no longer held and nothing changed.
    """

    hold = Hold(job_id, token, owner)
    reason = _clean(reason)

    def work(connection: Connection) -> str | None:
        lock(connection, [job_id])
        holder = end_attempt(connection, live(hold), "failed", failure=failure, reason=reason)
        if holder is not None:
            ended = hold._replace(owner=holder)
            return again_or_never(connection, "failed", ended, failure, reason, retry_after_s)
        if not _ended_before(connection, "failed", hold):
            _refuse(connection, "fail", hold)
            return None
        return connection.scalar(select(Job.state).where(Job.id == job_id))

    state = transact(engine, work)
    if state == State.FAILED:
        # apart from the failure, which counts whatever becomes of this
        transact(engine, lambda connection: stop_columns(connection, job_id))
    return state


def release(
    engine: Engine, *, job_id: int, token: int, reason: str, owner: str | None = None
) -> bool:
    """Give the job back, ready for anyone, at no cost to it: a drain, a preemption, no room.

    False: the attempt is no longer held and nothing changed.
    """
    hold = Hold(job_id, token, owner)
    reason = _clean(reason)

    def work(connection: Connection) -> bool:
        lock(connection, [job_id])
        holder = end_attempt(connection, live(hold), "released", reason=reason)
        if holder is None:
            said_before = _ended_before(connection, "released", hold)
            return said_before or _refuse(connection, "release", hold)
        move(connection, [job_id], State.READY)
        record(connection, "released", {**hold._asdict(), "owner": holder, "reason": reason})
        return True

    return transact(engine, work)


def end_attempt(
    connection: Connection, conditions: list[ColumnElement[bool]], outcome: str, **values: Any
) -> str | None:
    """End the attempt of these conditions (see `live`); its owner, or None when there is none."""
    return next(iter(end_attempts(connection, conditions, outcome, **values).values()), None)


def end_attempts(
    connection: Connection, conditions: list[ColumnElement[bool]], outcome: str, **values: Any
) -> dict[tuple[int, int], str]:
    """End the attempts of these conditions; their owners by (job id, token)."""
    values |= {"outcome": outcome, "ended_at": now_s(), "lease_until": None}
    ended = update(Attempt).where(*conditions).values(values)
    rows = connection.execute(ended.returning(Attempt.job_id, Attempt.token, Attempt.owner))
    return {(job_id, token): owner for job_id, token, owner in rows}


def again_or_never(
    connection: Connection,
    event: str,
    hold: Hold,
    failure: str,
    reason: str,
    wait_s: float | None = None,
) -> str:
    """Where a job goes whose attempt has just ended in a failure. Returns its new state."""
    job_id = hold.job_id
    counted = select(func.count()).join_from(Attempt, Job).where(Job.id == job_id)
    counted = counted.where(Attempt.failure == failure, Attempt.token > Job.forgiven_token)
    failures = connection.scalar(counted) or 0
    allowed = RETRIES.get(failure, RETRIES["UNKNOWN"])
    if allowed is None or failures <= allowed:
        state = State.READY
        wait_s = backoff_s(failure, failures) if wait_s is None else wait_s
        move(connection, [job_id], state, retry_at=now_s() + wait_s)
    else:
        state = State.FAILED
        move(connection, [job_id], state, failure=failure, reason=reason, ended_at=now_s())
        name = connection.scalar(select(Job.name).where(Job.id == job_id))
        skip_descendants(connection, [job_id], f"{name} failed: {failure}")
    figures = {"failure": failure, "count": failures, "allowed": allowed, "next": str(state)}
    record(connection, event, {**hold._asdict(), **figures, "reason": reason})
    return str(state)


def _ended_before(connection: Connection, outcome: str, hold: Hold) -> bool:
    """Whether these are words said again, since the answer to the first time was lost."""
    ended = select(Attempt.owner).where(
        Attempt.job_id == hold.job_id,
        Attempt.token == hold.token,
        Attempt.outcome == outcome,
    )
    holder = connection.scalar(ended)
    return holder is not None and hold.owner in (None, holder)


def _refuse(connection: Connection, verb: str, hold: Hold) -> bool:
    record(connection, "refused", {**hold._asdict(), "verb": verb})
    return False


def _clean(reason: str) -> str:
    """A reason that every database can store: no NUL, no half characters, of bounded length."""
    text = reason.replace("\0", "").encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= REASON_CHARACTERS else text[: REASON_CHARACTERS - 3] + "..."
