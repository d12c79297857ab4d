"""Why a job is where it is, with the facts behind each answer.

Finding what a person means: a sweep by name, a job by id, identity, its beginning, or name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, select

from xsweep.db.schema import Attempt, Definition, Edge, Job, Result, State, Sweep, SweepJob, now_s
from xsweep.db.transaction import reading
from xsweep.errors import ConfigError, did_you_mean

NAMES_COMPARED = 20_000


LISTED = 5


def find_job(engine: Engine, text: str) -> int:
    """The id of the job with that id, identity, beginning of an identity (4 digits on), or name.

    Raises ConfigError when there is none, with the nearest names, or more than one.
    """
    with reading(engine) as connection:
        return job_id(connection, text)


def sweep_id(connection: Connection, sweep: str | int) -> int:
    """The id of the sweep of that name or id. Raises ConfigError with the nearest names."""
    rows = connection.execute(select(Sweep.id, Sweep.name).order_by(Sweep.id)).all()
    for id_, name in rows:
        if sweep == name or str(sweep) == str(id_):
            return id_
    names = [name for _, name in rows]
    raise ConfigError(f"no sweep {str(sweep)!r}: {_nearest(str(sweep), names)}")


def job_id(connection: Connection, job: str | int) -> int:
    """See `find_job`."""
    text = str(job).strip()
    if text.isascii() and text.isdigit() and len(text) < 19:
        found = connection.scalar(select(Job.id).where(Job.id == int(text)))
        if found is not None:
            return found
    matches = [Job.name == text]
    if len(text) >= 4 and all(c in "0123456789abcdef" for c in text):
        # a range and not LIKE: every database's index on text serves it
        matches.append(Job.identity.between(text, text + "g"))
    for match in matches:
        rows = connection.execute(
            select(Job.id, Job.identity, Job.name).where(match).order_by(Job.id).limit(LISTED + 1)
        ).all()
        if len(rows) == 1:
            return rows[0].id
        if rows:
            listed = ", ".join(f"{row.identity[:12]} ({row.name})" for row in rows[:LISTED])
            more = ", ..." if len(rows) > LISTED else ""
            raise ConfigError(
                f"job {text!r} is ambiguous: {listed}{more}; give more of the identity"
            )
    names = connection.scalars(select(Job.name).order_by(Job.id.desc()).limit(NAMES_COMPARED))
    raise ConfigError(f"no job {text!r}: {_nearest(text, names)}")


def _nearest(text: str, names: Iterable[str]) -> str:
    known = list(dict.fromkeys(names))
    if not known:
        return "the database has none yet; submit a grid first"
    return did_you_mean(text, known, most=3) or f"there is {', '.join(known[:LISTED])}"


COMPARED = 2_000
"""Done jobs that are looked through for the nearest one, the newest of the same kind."""


@dataclass(frozen=True, kw_only=True)
class ParentRow:
    """A parent, and how it stands."""

    role: str
    job_id: int
    identity: str
    name: str
    state: str


@dataclass(frozen=True, kw_only=True)
class AttemptRow:
    """An attempt; times in seconds since 1970 by the database's clock."""

    token: int
    owner: str
    node: str | None
    actor: str | None
    folder: str | None
    log: str | None
    claimed_at: float
    started_at: float | None
    ended_at: float | None
    outcome: str | None
    failure: str | None
    reason: str | None
    progress: dict[str, Any] | None
    """Where it was when its controller last wrote of it."""


@dataclass(frozen=True, kw_only=True)
class ClosestJob:
    """The done job that differs in the fewest settings: {"optimisation.lr": (here, there)}."""

    job_id: int
    identity: str
    name: str
    differences: dict[str, tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A job, in answers. What it has nothing to say about is empty."""

    job_id: int
    identity: str
    kind: str
    name: str
    state: str
    why: tuple[str, ...]
    """Sentences: the reasons for the state, the first one the nearest."""
    sweeps: tuple[str, ...]
    """Names of the sweeps that share the job."""
    parents: tuple[ParentRow, ...]
    attempts: tuple[AttemptRow, ...]
    """The oldest first."""
    folder: str | None
    """Where the accepted result is."""
    nearest_done: ClosestJob | None
    spec: dict[str, Any]


def explain(engine: Engine, job: str | int, *, compare: bool = True) -> Explanation:
    """Why the job waits, was retried, was skipped, is shared, or is no done job that looks like it.

    `compare` looks for the nearest done job, which reads the specs of up to `COMPARED` others.
    Raises ConfigError for an unknown job, with the nearest names.
    """
    with reading(engine) as connection:
        id_ = job_id(connection, job)
        row = connection.execute(
            select(Job, Definition.spec, Result.folder, now_s().label("now"))
            .join(Definition, Definition.job_id == Job.id)
            .outerjoin(Result, Result.job_id == Job.id)
            .where(Job.id == id_)
        ).one()
        parents = _parents(connection, id_)
        attempts = _attempts(connection, id_)
        member = select(Sweep.name, Sweep.state).join(SweepJob).where(SweepJob.job_id == id_)
        sweeps = connection.execute(member.order_by(Sweep.id)).all()
        nearest = None
        if compare and row.state != State.DONE:
            nearest = _nearest_done(connection, id_, row.kind, row.spec, parents)
    return Explanation(
        job_id=id_,
        identity=row.identity,
        kind=row.kind,
        name=row.name,
        state=row.state,
        why=tuple(_why(row, parents, attempts, dict(sweeps))),
        sweeps=tuple(name for name, _ in sweeps),
        parents=parents,
        attempts=attempts,
        folder=row.folder,
        nearest_done=nearest,
        spec=row.spec,
    )


def _why(
    row: Any,
    parents: tuple[ParentRow, ...],
    attempts: tuple[AttemptRow, ...],
    sweeps: dict[str, str],
) -> list[str]:
    reasons = []
    if row.state == State.WAITING:
        missing = [parent for parent in parents if parent.state != State.DONE]
        reasons += [f"waits for {p.role}: {p.name} ({p.state})" for p in missing]
    if row.state == State.READY:
        reasons += _why_unclaimed(row, sweeps)
    if row.state == State.RUNNING:
        last = attempts[-1]
        node = last.node or (last.progress or {}).get("node") or "a node not named yet"
        reasons.append(f"attempt {last.token} runs on {node}")
    if row.state == State.DONE:
        reasons.append(f"has the accepted result of attempt {attempts[-1].token}: {row.folder}")
    if row.state == State.FAILED:
        reasons.append(f"failed for good: {row.failure}: {row.reason}")
    if row.state == State.SKIPPED:
        reasons.append(f"skipped: {row.reason}")
    if row.state == State.CANCELLED:
        reasons.append("cancelled by request; `xsweep retry` takes it up again")
    for attempt in attempts:
        if attempt.outcome not in (None, "done"):
            words = [f"attempt {attempt.token} {attempt.outcome}", attempt.failure, attempt.reason]
            reasons.append(": ".join(word for word in words if word))
    if len(sweeps) > 1:
        reasons.append(f"one job for the sweeps {', '.join(sweeps)}")
    return reasons


def _why_unclaimed(row: Any, sweeps: dict[str, str]) -> list[str]:
    if "active" not in sweeps.values():
        states = ", ".join(f"{name} is {state}" for name, state in sweeps.items())
        return [f"ready, but nobody may take it: {states}"]
    if row.retry_at is not None and row.retry_at > row.now:
        return [f"tries again in {row.retry_at - row.now:.0f} s"]
    return ["ready to be claimed; jobs with longer chains behind them go first"]


def _parents(connection: Connection, id_: int) -> tuple[ParentRow, ...]:
    columns = (Edge.role, Job.id.label("job_id"), Job.identity, Job.name, Job.state)
    query = select(*columns).join(Edge, Edge.parent_id == Job.id).where(Edge.child_id == id_)
    rows = connection.execute(query.order_by(Edge.role)).mappings()
    return tuple(ParentRow(**row) for row in rows)


def _attempts(connection: Connection, id_: int) -> tuple[AttemptRow, ...]:
    columns = (getattr(Attempt, name) for name in AttemptRow.__dataclass_fields__)
    query = select(*columns).where(Attempt.job_id == id_).order_by(Attempt.token)
    return tuple(AttemptRow(**row) for row in connection.execute(query).mappings())


def _nearest_done(
    connection: Connection,
    id_: int,
    kind: str,
    spec: dict[str, Any],
    parents: tuple[ParentRow, ...],
) -> ClosestJob | None:
    done = (
        select(Job.id, Job.identity, Job.name, Definition.spec)
        .join(Definition)
        .where(Job.kind == kind, Job.state == State.DONE, Job.id != id_)
        .order_by(Job.id.desc())
        .limit(COMPARED)
    )
    here = _leaves(spec)
    best: ClosestJob | None = None
    for other_id, identity, name, other_spec in connection.execute(done):
        there = _leaves(other_spec)
        differences = {
            key: (here.get(key), there.get(key))
            for key in sorted(here.keys() | there.keys())
            if here.get(key) != there.get(key)
        }
        if best is None or len(differences) < len(best.differences):
            best = ClosestJob(
                job_id=other_id, identity=identity, name=name, differences=differences
            )
    if best is None:
        return None
    # equal settings on other inputs are another job too
    ours = {parent.role: parent.identity for parent in parents}
    theirs = {parent.role: parent.identity for parent in _parents(connection, best.job_id)}
    inputs = {
        f"inputs.{role}": (ours.get(role), theirs.get(role))
        for role in sorted(ours.keys() | theirs.keys())
        if ours.get(role) != theirs.get(role)
    }
    return ClosestJob(
        job_id=best.job_id,
        identity=best.identity,
        name=best.name,
        differences=best.differences | inputs,
    )


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every value that is no dict, by its dotted path; lists are compared whole."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _leaves(item, f"{path}.{key}" if path else str(key))
    return found
