"""How an attempt ends: its result is accepted, it fails, or it is given back."""

import math
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, func, insert, select, update

from db.claims import Hold, live
from db.clock import now_s
from db.events import record
from db.family import lock, move, skip_descendants, wake_children
from db.schema import Attempt, Job, Result
from db.scores import pack_scores, store_scores
from db.states import RETRIES, State, backoff_s
from db.transactions import transact

REASON_CHARACTERS = 10_000


def finish(
    engine: Engine,
    *,
    job_id: int,
    token: int,
    folder: str,
    manifest_sha256: str,
    summary: dict[str, Any],
    provenance: dict[str, Any],
    scores: Mapping[str, Mapping[str, float]] | None = None,
    query_set_name: str | None = None,
    owner: str | None = None,
) -> bool:
    """Accept the attempt's result and make ready what waited for it, in one transaction.

    `scores` is {measure: {query id: value}}, every measure over the same queries. False: the
    attempt is no longer held, nothing changed, its folder counts for nothing. Saying it again after
    a lost answer is True again. Numbers that are not finite become null in summary and provenance;
    in scores they raise DataError.
    """
    packed = pack_scores(scores or {}, query_set_name or "")
    hold = Hold(job_id, token, owner)
    result = {"job_id": job_id, "token": token, "manifest_sha256": manifest_sha256}

    def work(connection: Connection) -> bool:
        lock(connection, [job_id])
        holder = end_attempt(connection, live(hold), "done")
        if holder is None:
            same = select(Result.job_id).filter_by(**result)
            return connection.scalar(same) is not None or _refuse(connection, "finish", hold)
        stored = {"summary": _storable(summary), "provenance": _storable(provenance)}
        values = {**result, **stored, "folder": folder, "accepted_at": now_s()}
        connection.execute(insert(Result).values(values))
        scores_sha256 = store_scores(connection, job_id, packed)
        move(connection, [job_id], State.DONE, ended_at=now_s())
        seals = {"manifest_sha256": manifest_sha256, "scores_sha256": scores_sha256}
        record(connection, "accepted", {**hold._asdict(), **seals, "owner": holder})
        woken = wake_children(connection, job_id)
        record(connection, "ready", *({"job_id": child} for child in woken))
        return True

    return transact(engine, work)


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
    and what needs the job is skipped. None: the attempt is no longer held and nothing changed.
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

    return transact(engine, work)


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
    values |= {"outcome": outcome, "ended_at": now_s(), "lease_until": None}
    ended = update(Attempt).where(*conditions).values(values)
    return connection.scalar(ended.returning(Attempt.owner))


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


def _storable(value: Any) -> Any:
    """The value with null for every number that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list | tuple) else value
