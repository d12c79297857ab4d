"""Verify the invariants of any database at any time: replay its history against its tables."""

import math
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.orm import InstrumentedAttribute

from xsweep.db.results import checksum_arrays, digest_query_ids
from xsweep.db.schema import (
    BROKEN,
    Attempt,
    Edge,
    Event,
    Job,
    QuerySet,
    Result,
    Score,
    State,
    Sweep,
    SweepJob,
)
from xsweep.db.status import read_tally
from xsweep.db.transaction import reading

INVARIANTS = {
    "I1": "a job has at most one accepted result, the first one since it was last redone",
    "I2": "a job has at most one live attempt at a time",
    "I3": "the tokens of a job's attempts only grow",
    "I4": "no job runs before all of its parents have results",
    "I5": "every job has a final state or can reach one",
    "I6": "no job is retried beyond the budget of its failures",
    "I7": "submitting again adds nothing: every row was counted when submitted, and still is",
    "I8": "scores are those that were accepted, to the bit",
}

STREAMED = 10_000
"""Rows that are read at a time."""


@dataclass(frozen=True)
class Violation:
    """An invariant that a job, or the database as a whole, violates."""

    invariant: str
    job_id: int | None
    message: str


@dataclass
class _Replay:
    """The state of each job by the history up to an event."""

    parents: dict[int, list[int]]
    held: dict[int, int] = field(default_factory=dict)
    latest: Counter[int] = field(default_factory=Counter)
    claims: Counter[int] = field(default_factory=Counter)
    accepted: dict[int, tuple[int, str, str | None]] = field(default_factory=dict)
    failures: Counter[tuple[int, str]] = field(default_factory=Counter)
    stopped: set[int] = field(default_factory=set)
    submitted: Counter[int] = field(default_factory=Counter)
    new_jobs: int = 0


def check(engine: Engine) -> list[Violation]:
    """All violations of `INVARIANTS` in the database; normally none."""
    with reading(engine) as connection:
        parents: dict[int, list[int]] = defaultdict(list)
        for child_id, parent_id in connection.execute(select(Edge.child_id, Edge.parent_id)):
            parents[child_id].append(parent_id)
        past = _Replay(parents=parents)
        history = select(Event).order_by(Event.id).execution_options(yield_per=STREAMED)
        events = connection.execute(history)
        found = [violation for event in events for violation in _replay(past, event)]
        found += _compare_results(connection, past)
        found += _compare_jobs(connection, past)
        found += _compare_submissions(connection, past)
        found += _compare_scores(connection, past)
    return found


def _replay(past: _Replay, event: Any) -> Iterator[Violation]:
    if event.kind == "submitted":
        past.new_jobs += event.detail["new"]
        past.submitted[event.sweep_id or 0] += event.detail["added"]
    elif event.kind == "removed":
        past.submitted[event.sweep_id or 0] -= event.detail["jobs"]
    if event.job_id is None:
        return
    job, token = event.job_id, event.token or 0
    at = f"event {event.id}"
    if event.kind == "claimed":
        if job in past.held:
            yield Violation("I2", job, f"{at}: claimed while attempt {past.held[job]} was live")
        if token <= past.latest[job]:
            yield Violation("I3", job, f"{at}: token {token} after {past.latest[job]}")
        missing = [parent for parent in past.parents.get(job, ()) if parent not in past.accepted]
        if missing:
            yield Violation("I4", job, f"{at}: claimed before its parents {missing} were done")
        past.held[job] = token
        past.latest[job] = max(token, past.latest[job])
        past.claims[job] += 1
    elif event.kind == "accepted":
        if job in past.accepted:
            yield Violation("I1", job, f"{at}: a second result was accepted")
        elif past.held.get(job) != token:
            yield Violation("I1", job, f"{at}: accepted from attempt {token}, which was not live")
        checksums = (event.detail["manifest_sha256"], event.detail["scores_sha256"])
        past.accepted.setdefault(job, (token, *checksums))
        past.held.pop(job, None)
    elif event.kind == "redone":
        if past.accepted.pop(job, (None,))[0] != token:
            yield Violation("I1", job, f"{at}: redone, though attempt {token} had no result")
        _forgive(past, job)
    elif event.kind in ("failed", "expired"):
        failure, allowed = event.detail["failure"], event.detail["allowed"]
        past.failures[job, failure] += 1
        count = past.failures[job, failure]
        if event.detail["next"] == State.READY and allowed is not None and count > allowed:
            message = f"{at}: retried after {failure} failure {count}, only {allowed} are allowed"
            yield Violation("I6", job, message)
        past.held.pop(job, None)
    elif event.kind in ("released", "cancelled"):
        past.held.pop(job, None)
    elif event.kind == "stopped":
        past.stopped.add(job)
    elif event.kind == "retried":
        past.stopped.discard(job)
        _forgive(past, job)


def _forgive(past: _Replay, job: int) -> None:
    for key in [key for key in past.failures if key[0] == job]:
        del past.failures[key]


def _compare_results(connection: Connection, past: _Replay) -> Iterator[Violation]:
    results = connection.execute(select(Result.job_id, Result.token, Result.manifest_sha256))
    stored = {job_id: (token, manifest) for job_id, token, manifest in results}
    for job in sorted(stored.keys() | past.accepted.keys()):
        accepted = past.accepted.get(job)
        if accepted is None or stored.get(job) != accepted[:2]:
            message = f"the result {stored.get(job)} is not the accepted {accepted}"
            yield Violation("I1", job, message)


def _compare_jobs(connection: Connection, past: _Replay) -> Iterator[Violation]:
    live: dict[int, list[int]] = defaultdict(list)
    held = select(Attempt.job_id, Attempt.token).where(Attempt.outcome.is_(None))
    for job_id, token in connection.execute(held):
        live[job_id].append(token)
    attempts = Counter(_counts(connection, Attempt.job_id))
    rows = connection.execute(select(Job.id, Job.state, Job.token, Job.missing_parents)).all()
    states = {row.id: row.state for row in rows}
    for id_, state, token, missing_parents in rows:
        tokens, expected = live.get(id_, []), past.held.get(id_)
        if len(tokens) > 1 or (tokens and tokens[0] != expected):
            yield Violation("I2", id_, f"live attempts {tokens}, by the history {expected}")
        if token != past.latest[id_] or attempts[id_] != past.claims[id_]:
            counts = f"{attempts[id_]} attempts, token {token}"
            expected_counts = f"{past.claims[id_]} claims, token {past.latest[id_]}"
            yield Violation("I3", id_, f"{counts}; by the history {expected_counts}")
        if (state == State.DONE) != (id_ in past.accepted):
            yield Violation("I1", id_, f"{state}, which contradicts the accepted results")
        if (state == State.RUNNING) != bool(tokens):
            yield Violation("I5", id_, f"{state} with live attempts {tokens}")
        parents = [states[parent] for parent in past.parents.get(id_, ())]
        missing = sum(parent != State.DONE for parent in parents)
        if missing != missing_parents:
            yield Violation("I5", id_, f"counts {missing_parents} missing parents, has {missing}")
        broken = any(parent in BROKEN for parent in parents)
        needlessly = state == State.SKIPPED and not broken and id_ not in past.stopped
        if (state == State.WAITING and broken) or needlessly:
            yield Violation("I5", id_, f"{state} with parents that are {sorted(set(parents))}")


def _compare_submissions(connection: Connection, past: _Replay) -> Iterator[Violation]:
    jobs = connection.scalar(select(func.count()).select_from(Job))
    if jobs != past.new_jobs:
        yield Violation("I7", None, f"{jobs} jobs, but {past.new_jobs} were submitted")
    members = Counter(_counts(connection, SweepJob.sweep_id))
    for id_, name in connection.execute(select(Sweep.id, Sweep.name)):
        if members[id_] != past.submitted[id_]:
            counts = f"{members[id_]} jobs, but {past.submitted[id_]} were submitted"
            yield Violation("I7", None, f"sweep {name!r}: {counts}")
    key = (SweepJob.sweep_id, Job.kind, Job.state)
    rows = connection.execute(select(*key, func.count()).join_from(SweepJob, Job).group_by(*key))
    counted = Counter({(sweep, kind, state): count for sweep, kind, state, count in rows})
    tally = Counter({(c.sweep_id, c.kind, c.state): c.jobs for c in read_tally(connection)})
    for sweep, kind, state in sorted(counted.keys() | tally.keys()):
        count, tallied = counted[sweep, kind, state], tally[sweep, kind, state]
        if count != tallied:
            message = f"sweep {sweep}: {count} {state} {kind} jobs, {tallied} by the tally"
            yield Violation("I7", None, message)


def _compare_scores(connection: Connection, past: _Replay) -> Iterator[Violation]:
    sets = {}
    query_sets = select(QuerySet.id, QuerySet.digest, QuerySet.query_ids)
    for id_, digest, query_ids in connection.execute(query_sets):
        sets[id_] = (digest, len(query_ids))
        if digest != digest_query_ids(query_ids):
            yield Violation("I8", None, f"query set {id_}: its ids do not match its digest")
    stored: dict[int, list[tuple[str, str, bytes]]] = defaultdict(list)
    columns = (Score.job_id, Score.measure, Score.query_set_id, Score.packed, Score.mean)
    query = select(*columns).execution_options(yield_per=STREAMED)
    for job_id, measure, query_set_id, packed, mean in connection.execute(query):
        digest, count = sets[query_set_id]
        stored[job_id].append((measure, digest, packed))
        if len(packed) != 8 * count:
            yield Violation("I8", job_id, f"{measure}: {len(packed)} bytes for {count} queries")
        elif math.fsum(struct.unpack(f"<{count}d", packed)) / count != mean:
            yield Violation("I8", job_id, f"{measure}: {mean} is not the mean of its scores")
    for job in sorted(stored.keys() | past.accepted.keys()):
        checksum = checksum_arrays(stored[job]) if job in stored else None
        accepted = past.accepted[job][2] if job in past.accepted else None
        if checksum != accepted:
            yield Violation("I8", job, "its scores are not those that were accepted")


def _counts(connection: Connection, column: InstrumentedAttribute[int]) -> dict[int, int]:
    rows = connection.execute(select(column, func.count()).group_by(column))
    return {id_: count for id_, count in rows}  # noqa: C416  (mypy takes no rows for pairs)
