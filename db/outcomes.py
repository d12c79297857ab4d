"""How an attempt ends: its result is accepted, it fails, or it is given back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, func, insert, select, tuple_, update

from db.bulk import pieces
from db.claims import Hold, live
from db.clock import now_s
from db.columns import stop_columns
from db.events import record
from db.family import lock, move, skip_descendants, wake_children
from db.schema import Attempt, Job, Result
from db.scores import PackedScores, pack_scores, store_scores
from db.states import RETRIES, State, backoff_s
from db.transactions import transact

REASON_CHARACTERS = 10_000


@dataclass(frozen=True, kw_only=True)
class NewResult:
    """What an attempt came to: its folder, sealed by its manifest, and what is reported of it."""

    job_id: int
    token: int
    folder: str
    manifest_sha256: str
    summary: dict[str, Any]
    provenance: dict[str, Any]
    scores: Mapping[str, Mapping[str, float]] | None = None
    """{measure: {query id: value}}, every measure over the same queries."""
    query_set_name: str | None = None


def finish(engine: Engine, *, owner: str | None = None, **result: Any) -> bool:
    """Accept the result of one attempt, given as the fields of `NewResult`; see `finish_all`."""
    return bool(finish_all(engine, [NewResult(**result)], owner=owner))


def finish_all(
    engine: Engine, results: Sequence[NewResult], *, owner: str | None = None
) -> set[tuple[int, int]]:
    """Accept results of attempts and make ready what waited for them, in one transaction.

    Returns the (job id, token) pairs whose results count. Any other is no longer held: nothing of
    it changed, its folder counts for nothing. Saying it again after a lost answer is the same
    answer. Numbers that are not finite become null in summary and provenance; in scores they raise
    DataError, and no result of the call is accepted.
    """
    packed = [pack_scores(each.scores or {}, each.query_set_name or "") for each in results]
    accepted: set[tuple[int, int]] = set()
    for piece in pieces(list(zip(results, packed, strict=True))):
        accepted |= transact(engine, lambda c, piece=piece: finish_held(c, piece, owner))  # type: ignore[misc]
    return accepted


def finish_held(
    connection: Connection, results: list[tuple[NewResult, PackedScores]], owner: str | None
) -> set[tuple[int, int]]:
    pairs = [(result.job_id, result.token) for result, _ in results]
    lock(connection, [job_id for job_id, _ in pairs])
    held: list[ColumnElement[bool]] = [
        tuple_(Attempt.job_id, Attempt.token).in_(pairs),
        Attempt.outcome.is_(None),
    ]
    if owner is not None:
        held.append(Attempt.owner == owner)
    holders = end_attempts(connection, held, "done")
    rows: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    accepted: set[tuple[int, int]] = set()
    for (result, scores), (job_id, token) in zip(results, pairs, strict=True):
        seal = {"job_id": job_id, "token": token, "manifest_sha256": result.manifest_sha256}
        if (job_id, token) not in holders:
            if connection.scalar(select(Result.job_id).filter_by(**seal)) is not None:
                accepted.add((job_id, token))
            else:
                _refuse(connection, "finish", Hold(job_id, token, owner))
            continue
        accepted.add((job_id, token))
        told = {"summary": _storable(result.summary), "provenance": _storable(result.provenance)}
        rows.append({**seal, **told, "folder": result.folder})
        events.append(seal | {"owner": holders[job_id, token], "scores": scores})
    if not rows:
        return accepted
    connection.execute(insert(Result).values(accepted_at=now_s()), rows)
    for event in events:
        scores = event.pop("scores")
        event["scores_sha256"] = store_scores(connection, event["job_id"], scores)
    done = [row["job_id"] for row in rows]
    move(connection, done, State.DONE, ended_at=now_s())
    record(connection, "accepted", *events)
    woken = wake_children(connection, done)
    record(connection, "ready", *({"job_id": child} for child in woken))
    return accepted


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


def _storable(value: Any) -> Any:
    """The value with null for every number that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list | tuple) else value
