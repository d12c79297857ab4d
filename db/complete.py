"""Complete attempts: accept their results, or end them without one by a failure or a release."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeEngine

from xsweep.db.breaker import stop_columns
from xsweep.db.claim import LEASE, Lease, live
from xsweep.db.dependencies import lock, move, skip_descendants, wake_children
from xsweep.db.events import record, record_jobs
from xsweep.db.results import PackedScores, checksum_scores, pack_scores, store_scores
from xsweep.db.schema import RETRIES, Attempt, Event, Job, Result, State, backoff_s, now_s
from xsweep.db.transaction import pieces, transact

REASON_CHARACTERS = 10_000

Rows = dict[Lease, dict[str, Any]]
"""The values to write for each attempt."""


@dataclass(frozen=True, kw_only=True)
class NewResult:
    """The result of an attempt: its folder, sealed by its manifest, and what is reported of it."""

    lease: Lease
    folder: str
    manifest_sha256: str
    summary: dict[str, Any]
    provenance: dict[str, Any]
    scores: Mapping[str, Mapping[str, float]] | None = None
    """{measure: {query id: value}}, every measure over the same queries."""
    query_set_name: str | None = None


def finish(engine: sa.Engine, results: Sequence[NewResult]) -> set[Lease]:
    """Accept results of attempts and make the jobs ready that waited for them, in one transaction.

    Returns the leases whose results count. Any other no longer holds: its job is unchanged and its
    folder counts for nothing. A retry after a lost reply returns the same. Numbers that are not
    finite become null in summary and provenance; in scores they raise DataError, and no result of
    the call is accepted.
    """
    packed = [pack_scores(each.scores or {}, each.query_set_name or "") for each in results]
    accepted: set[Lease] = set()
    for piece in pieces(list(zip(results, packed, strict=True))):
        accepted |= transact(engine, lambda c, piece=piece: accept_results(c, piece))  # type: ignore[misc]
    return accepted


def accept_results(
    connection: sa.Connection, results: list[tuple[NewResult, PackedScores]]
) -> set[Lease]:
    """`finish` within a transaction, for at most `xsweep.db.transaction.PIECE` results."""
    packed = {result.lease: scores for result, scores in results}
    rows: Rows = {}
    details: Rows = {}
    for result, scores in results:
        checksum = {"manifest_sha256": result.manifest_sha256}
        details[result.lease] = {**checksum, "scores_sha256": checksum_scores(scores)}
        rows[result.lease] = {
            "job_id": result.lease.job_id,
            "token": result.lease.token,
            "folder": result.folder,
            **checksum,
            "summary": _storable(result.summary),
            "provenance": _storable(result.provenance),
        }
    write = _write_at_once if connection.dialect.name == "postgresql" else _write_in_turn
    held = write(connection, rows, details)
    for lease in held:
        store_scores(connection, lease.job_id, packed[lease])
    if held:
        woken = wake_children(connection, [lease.job_id for lease in held])
        record_jobs(connection, "ready", woken)
    lost = [lease for lease in rows if lease not in held]
    return held | {lease for lease in lost if _accepted_before(connection, lease, rows[lease])}


def _write_in_turn(connection: sa.Connection, rows: Rows, details: Rows) -> set[Lease]:
    """End the attempts that are held and write their results; returns their leases.

    One statement after the other, for SQLite, whose transaction locks the whole database.
    """
    held = end_attempts(connection, live(rows), "done")
    if held:
        connection.execute(_INSERT_RESULT, [rows[lease] for lease in held])
        move(connection, [lease.job_id for lease in held], State.DONE, ended_at=now_s())
        events = ({**lease._asdict(), **details[lease]} for lease in held)
        record(connection, "accepted", *events)
    return set(held)


_INSERT_RESULT = sa.insert(Result).values(accepted_at=now_s())


def _write_at_once(connection: sa.Connection, rows: Rows, details: Rows) -> set[Lease]:
    """`_write_in_turn` in one statement, for PostgreSQL.

    Another one wakes the children: this one may wait for a submission that adds some, and would not
    see them.
    """
    values = {name: [row[name] for row in rows.values()] for name in _RESULT}
    for name in ("summary", "provenance"):
        values[name] = [json.dumps(value, allow_nan=False) for value in values[name]]
    values["owner"] = [lease.owner for lease in rows]
    values["detail"] = [json.dumps(details[lease]) for lease in rows]
    single = len(rows) == 1
    parameters = {_parameter(name): each[0] if single else each for name, each in values.items()}
    return {Lease(*row) for row in connection.execute(_accept(single), parameters)}


_RESULT: dict[str, type[TypeEngine[Any]]] = {
    "job_id": sa.BigInteger,
    "token": sa.Integer,
    "folder": sa.Text,
    "manifest_sha256": sa.Text,
    "summary": sa.Text,
    "provenance": sa.Text,
}
_GIVEN: dict[str, type[TypeEngine[Any]]] = {**_RESULT, "owner": sa.Text, "detail": sa.Text}


def _parameter(column: str) -> str:
    """A parameter of the column's own name would be taken for a new value of that column."""
    return f"{column}s"


@cache
def _accept(single: bool) -> sa.Executable:
    """The statement of `_write_at_once`; each part reads what the one before it wrote.

    A single result is given as values and not as arrays of one: the server expects ten elements of
    an array, so it would make a new plan each time, which takes as long as the rest.
    """
    given: sa.FromClause
    if single:
        values: list[Any] = [
            sa.cast(sa.bindparam(_parameter(name), type_=kind), kind).label(name)
            for name, kind in _GIVEN.items()
        ]
        given = sa.select(*values).subquery("given")
    else:
        arrays = (
            sa.bindparam(_parameter(key), type_=sa.ARRAY(kind)) for key, kind in _GIVEN.items()
        )
        given = sa.func.unnest(*arrays).table_valued(*_GIVEN, name="given").render_derived()
    # in ascending order, see `lock`
    locked = (
        sa.select(Job.id)
        .where(Job.id.in_(sa.select(given.c.job_id)))
        .order_by(Job.id)
        .with_for_update()
        .cte("locked")
    )
    ended = (
        sa.update(Attempt)
        .where(Attempt.job_id == locked.c.id, Attempt.outcome.is_(None))
        .where(*(column == given.c[column.key] for column in LEASE))
        .values(_ended("done"))
        .returning(*(given.c[name] for name in _GIVEN))
        .cte("ended")
    )
    result = sa.select(
        *(ended.c[name] for name in ("job_id", "token", "folder", "manifest_sha256")),
        *(sa.cast(ended.c[name], sa.JSON) for name in ("summary", "provenance")),
        now_s(),
    )
    keep = sa.insert(Result).from_select([*_RESULT, "accepted_at"], result)
    kept = keep.returning(Result.job_id).cte("kept")
    done = {"state": State.DONE, "ended_at": now_s()}
    moved = sa.update(Job).where(Job.id == kept.c.job_id).values(done).cte("moved")
    lease = [ended.c[column.key] for column in LEASE]
    kind, detail = sa.literal("accepted", sa.Text), sa.cast(ended.c.detail, sa.JSON)
    event = sa.select(now_s(), kind, *lease, detail)
    columns = ["at", "kind", "job_id", "token", "owner", "detail"]
    recorded = sa.insert(Event).from_select(columns, event).cte("recorded")
    return sa.select(*lease).add_cte(moved, recorded)


def _accepted_before(connection: sa.Connection, lease: Lease, row: dict[str, Any]) -> bool:
    """Recognise a retry of a call whose reply was lost."""
    result = {name: row[name] for name in ("job_id", "token", "manifest_sha256")}
    accepted = connection.scalar(sa.select(Result.job_id).filter_by(**result)) is not None
    return accepted or _refuse(connection, "finish", lease)


def _storable(value: Any) -> Any:
    """The value with null for every number that JSON cannot express."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list | tuple) else value


def fail(
    engine: sa.Engine,
    lease: Lease,
    *,
    failure: str,
    reason: str,
    retry_after_s: float | None = None,
) -> str | None:
    """End the attempt in a class of `xsweep.db.schema.RETRIES`; returns the job's new state.

    "ready" after a wait (`retry_after_s`, or one that grows) while the class allows another try,
    else "failed": then the jobs that need it are skipped, and so is the rest of a column of the
    grid that always fails. None: the lease no longer holds and nothing changed.
    """
    reason = _clean(reason)

    def work(connection: sa.Connection) -> str | None:
        lock(connection, [lease.job_id])
        if end_attempts(connection, live([lease]), "failed", failure=failure, reason=reason):
            return retry_or_fail(connection, "failed", lease, failure, reason, retry_after_s)
        if _ended_before(connection, "failed", lease) or _refuse(connection, "fail", lease):
            return connection.scalar(sa.select(Job.state).where(Job.id == lease.job_id))
        return None

    state = transact(engine, work)
    if state == State.FAILED:
        # in another transaction: the failure counts even if this one breaks off
        transact(engine, lambda connection: stop_columns(connection, lease.job_id))
    return state


def release(engine: sa.Engine, lease: Lease, *, reason: str) -> bool:
    """Give the job back uncharged, ready for anyone: after a drain or preemption, or for no room.

    False: the lease no longer holds and nothing changed.
    """
    reason = _clean(reason)

    def work(connection: sa.Connection) -> bool:
        lock(connection, [lease.job_id])
        if not end_attempts(connection, live([lease]), "released", reason=reason):
            before = _ended_before(connection, "released", lease)
            return before or _refuse(connection, "release", lease)
        move(connection, [lease.job_id], State.READY)
        record(connection, "released", {**lease._asdict(), "reason": reason})
        return True

    return transact(engine, work)


def end_attempts(
    connection: sa.Connection, condition: sa.ColumnElement[bool], outcome: str, **values: Any
) -> list[Lease]:
    """End the attempts that meet a condition (see `live`); their leases."""
    ended = sa.update(Attempt).where(condition).values(_ended(outcome) | values)
    return [Lease(*row) for row in connection.execute(ended.returning(*LEASE))]


def _ended(outcome: str) -> dict[str, Any]:
    return {"outcome": outcome, "ended_at": now_s(), "lease_until": None}


def retry_or_fail(
    connection: sa.Connection,
    event: str,
    lease: Lease,
    failure: str,
    reason: str,
    wait_s: float | None = None,
) -> str:
    """Move a job whose attempt has just failed to ready or failed. Returns its new state."""
    job_id = lease.job_id
    counted = sa.select(sa.func.count()).join_from(Attempt, Job).where(Job.id == job_id)
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
        name = connection.scalar(sa.select(Job.name).where(Job.id == job_id))
        skip_descendants(connection, [job_id], f"{name} failed: {failure}")
    detail = {"failure": failure, "count": failures, "allowed": allowed, "next": str(state)}
    record(connection, event, {**lease._asdict(), **detail, "reason": reason})
    return str(state)


def _ended_before(connection: sa.Connection, outcome: str, lease: Lease) -> bool:
    """Recognise a retry of a call whose reply was lost."""
    ended = sa.select(Attempt.job_id).filter_by(**lease._asdict(), outcome=outcome)
    return connection.scalar(ended) is not None


def _refuse(connection: sa.Connection, verb: str, lease: Lease) -> bool:
    record(connection, "refused", {**lease._asdict(), "verb": verb})
    return False


def _clean(reason: str) -> str:
    """A reason that every database can store: no NUL, no lone surrogate, of bounded length."""
    text = reason.replace("\0", "").encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= REASON_CHARACTERS else text[: REASON_CHARACTERS - 3] + "..."
