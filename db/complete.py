"""How an attempt ends well: its result is accepted, and what waited for it becomes ready.

How an attempt ends without a result: it fails, or it is given back.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Executable,
    FromClause,
    Integer,
    Text,
    bindparam,
    cast,
    func,
    insert,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.types import TypeEngine

from xsweep.db.breaker import stop_columns
from xsweep.db.claim import Hold, live
from xsweep.db.dependencies import lock, move, skip_descendants, wake_children
from xsweep.db.events import record
from xsweep.db.schema import RETRIES, Attempt, Event, Job, Result, State, backoff_s, now_s
from xsweep.db.scores import PackedScores, pack_scores, seal_of, store_scores
from xsweep.db.transaction import pieces, transact


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
    """`finish_all` within a transaction."""
    rows: Rows = {}
    events: Rows = {}
    packed: dict[tuple[int, int], PackedScores] = {}
    for result, scores in results:
        pair = result.job_id, result.token
        seal = {"manifest_sha256": result.manifest_sha256}
        told = {"summary": _storable(result.summary), "provenance": _storable(result.provenance)}
        rows[pair] = {"job_id": pair[0], "token": pair[1], "folder": result.folder, **seal, **told}
        events[pair] = {**seal, "scores_sha256": seal_of(scores)}
        packed[pair] = scores
    write = _write_at_once if connection.dialect.name == "postgresql" else _write_in_turn
    held = write(connection, rows, events, owner)
    for pair in held:
        store_scores(connection, pair[0], packed[pair])
    if held:
        woken = wake_children(connection, [job_id for job_id, _ in held])
        record(connection, "ready", *({"job_id": child} for child in woken))
    return held | {
        pair for pair in rows.keys() - held if _accepted_before(connection, rows[pair], owner)
    }


Rows = dict[tuple[int, int], dict[str, Any]]
"""What is to be written of each attempt, by job id and token."""


def _write_in_turn(
    connection: Connection, rows: Rows, events: Rows, owner: str | None
) -> set[tuple[int, int]]:
    """End the attempts that are held and write their results; returns these attempts.

    A statement after the other, for SQLite, whose transaction holds the whole database.
    """
    end, move = _ending(owner is not None), _MOVE
    ended = connection.execute(end, {"pairs": list(rows), "holder": owner}).all()
    if not ended:
        return set()
    holders = {(job_id, token): holder for job_id, token, holder in ended}
    connection.execute(_KEEP, [rows[pair] for pair in holders])
    connection.execute(move, {"ids": [job_id for job_id, _ in holders]})
    record(
        connection,
        "accepted",
        *(
            {"job_id": pair[0], "token": pair[1], "owner": holder, **events[pair]}
            for pair, holder in holders.items()
        ),
    )
    return set(holders)


def _write_at_once(
    connection: Connection, rows: Rows, events: Rows, owner: str | None
) -> set[tuple[int, int]]:
    """The same as `_write_in_turn` in one statement, for PostgreSQL.

    Its children are woken by another one: this one may wait for a submission that adds some, and
    would not see them.
    """
    told: dict[str, list[Any]] = {name: [row[name] for row in rows.values()] for name in _GIVEN}
    for name in ("summary", "provenance"):
        told[name] = [json.dumps(value, allow_nan=False) for value in told[name]]
    told["detail"] = [json.dumps(events[pair]) for pair in rows]
    alone = len(rows) == 1
    given = {_parameter(name): values[0] if alone else values for name, values in told.items()}
    accepted = connection.execute(_accepting(alone, owner is not None), given | {"holder": owner})
    return {(job_id, token) for job_id, token in accepted}


_KEEP = insert(Result).values(accepted_at=now_s())


_ENDED = {"outcome": "done", "ended_at": now_s(), "lease_until": None}


_DONE = {"state": State.DONE, "ended_at": now_s()}


_MOVE = update(Job).where(Job.id.in_(bindparam("ids", expanding=True))).values(_DONE)


_GIVEN: dict[str, type[TypeEngine[Any]]] = {
    "job_id": BigInteger,
    "token": Integer,
    "folder": Text,
    "manifest_sha256": Text,
    "summary": Text,
    "provenance": Text,
}


def _parameter(column: str) -> str:
    """SQLAlchemy takes a parameter that is called as a column for a new value of that column."""
    return f"{column}s"


@cache
def _ending(of_owner: bool) -> Executable:
    pair = tuple_(Attempt.job_id, Attempt.token)
    ended = update(Attempt).where(pair.in_(bindparam("pairs", expanding=True)))
    ended = ended.where(Attempt.outcome.is_(None)).values(_ENDED)
    if of_owner:
        ended = ended.where(Attempt.owner == bindparam("holder"))
    return ended.returning(Attempt.job_id, Attempt.token, Attempt.owner)


@cache
def _accepting(alone: bool, of_owner: bool) -> Executable:
    """Each part reads what the one before it wrote, which puts them in order.

    A result alone is given as values and not as arrays of one: of arrays the server expects ten,
    so it makes a new plan each time, which takes as long as the rest.
    """
    given: FromClause
    columns: dict[str, type[TypeEngine[Any]]] = {**_GIVEN, "detail": Text}
    if alone:
        values = (
            cast(bindparam(_parameter(name), type_=type_), type_).label(name)
            for name, type_ in columns.items()
        )
        given = select(*values).subquery("given")
    else:
        arrays = (
            bindparam(_parameter(name), type_=ARRAY(type_)) for name, type_ in columns.items()
        )
        given = func.unnest(*arrays).table_valued(*columns, name="given").render_derived()
    # in ascending order, as everywhere, so that nobody deadlocks
    locked = (
        select(Job.id)
        .where(Job.id.in_(select(given.c.job_id)))
        .order_by(Job.id)
        .with_for_update()
        .cte("locked")
    )
    end = (
        update(Attempt)
        .where(Attempt.job_id == locked.c.id, Attempt.outcome.is_(None))
        .where(Attempt.job_id == given.c.job_id, Attempt.token == given.c.token)
    )
    if of_owner:
        end = end.where(Attempt.owner == bindparam("holder"))
    told = (given.c[name] for name in columns)
    ended = end.values(_ENDED).returning(Attempt.owner, *told).cte("ended")
    result = select(
        *(ended.c[name] for name in ("job_id", "token", "folder", "manifest_sha256")),
        *(cast(ended.c[name], JSON) for name in ("summary", "provenance")),
        now_s(),
    )
    keep = insert(Result).from_select([*_GIVEN, "accepted_at"], result)
    kept = keep.returning(Result.job_id, Result.token).cte("kept")
    moved = update(Job).where(Job.id == kept.c.job_id).values(_DONE).cte("moved")
    event = select(
        *(now_s(), literal("accepted", Text), ended.c.job_id, ended.c.token, ended.c.owner),
        cast(ended.c.detail, JSON),
    )
    subject = ["at", "kind", "job_id", "token", "owner", "detail"]
    recorded = insert(Event).from_select(subject, event).cte("recorded")
    return select(kept.c.job_id, kept.c.token).add_cte(moved, recorded)


def _accepted_before(connection: Connection, row: dict[str, Any], owner: str | None) -> bool:
    """Whether these are words said again, since the answer to the first time was lost."""
    seal = {name: row[name] for name in ("job_id", "token", "manifest_sha256")}
    if connection.scalar(select(Result.job_id).filter_by(**seal)) is not None:
        return True
    hold = {"job_id": row["job_id"], "token": row["token"], "owner": owner}
    record(connection, "refused", {**hold, "verb": "finish"})
    return False


def _storable(value: Any) -> Any:
    """The value with null for every number that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list | tuple) else value


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
    """End the attempt in a class of `xsweep.db.schema.RETRIES`; returns the job's new state.

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
            return retry_or_fail(connection, "failed", ended, failure, reason, retry_after_s)
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


def retry_or_fail(
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
