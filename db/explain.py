"""Look up a sweep or job by what a user calls it, and explain a job's state with its facts."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, exists, select

from xsweep.db.schema import Attempt, Definition, Edge, Job, Result, State, Sweep, SweepJob, now_s
from xsweep.db.transaction import reading
from xsweep.errors import ConfigError, did_you_mean

NAMES_COMPARED = 20_000
LISTED = 5

COMPARED = 2_000
"""The newest done jobs of the same kind, among which the closest one is searched."""


_KEPT_SWEEPS = select(Sweep.id, Sweep.name).where(exists().where(SweepJob.sweep_id == Sweep.id))


def only_sweep(engine: Engine, given: str | None) -> str:
    """The sweep that was named, or the newest one's name. Raises ConfigError if there is none."""
    if given:
        return given
    with reading(engine) as connection:
        newest = connection.execute(_KEPT_SWEEPS.order_by(Sweep.id.desc()).limit(1)).first()
    if newest is None:
        raise ConfigError("no sweep has been submitted yet: run xsweep submit quickstart")
    return newest.name


def find_sweep(connection: Connection, sweep: str | int) -> int:
    """The id of the sweep of that name or id. Raises ConfigError with the nearest names."""
    rows = connection.execute(_KEPT_SWEEPS.order_by(Sweep.id)).all()
    for id_, name in rows:
        if sweep == name or str(sweep) == str(id_):
            return id_
    names = [name for _, name in rows]
    raise ConfigError(f"no sweep {str(sweep)!r}: {_nearest(str(sweep), names)}")


def find_job(connection: Connection, job: str | int, kind: str = "") -> int:
    """The id of the job with that id, name, identity, or prefix of an identity (4 digits or more).

    `demo/NAME` is the job of that name in the sweep `demo`; a name may leave out the given kind. Of
    several jobs of one name, one in a sweep is meant before those in none. Raises ConfigError when
    there is none, with the nearest names, or more than one, with their sweeps.
    """
    text = str(job).strip()
    if text.isascii() and text.isdigit() and len(text) < 19:
        found = connection.scalar(select(Job.id).where(Job.id == int(text)))
        if found is not None:
            return found
    sweep, _, name = text.partition("/")
    owner = exists().where(SweepJob.job_id == Job.id)
    in_sweep = owner.where(SweepJob.sweep_id == Sweep.id, Sweep.name == sweep)
    matches: list[ColumnElement[bool]] = [
        Job.name.in_((text, f"{kind} {text}")),
        Job.name.in_((name, f"{kind} {name}")) & in_sweep,
    ]
    if len(text) >= 4 and all(c in "0123456789abcdef" for c in text):
        # a range and not LIKE: every database's index on text serves it
        matches.append(Job.identity.between(text, text + "g"))
    for match in matches:
        jobs = select(Job.id, Job.name, owner.label("is_kept")).where(match)
        rows = connection.execute(jobs.order_by(owner.desc(), Job.id).limit(LISTED + 1)).all()
        if len(rows) == 1 or (rows and rows[0].is_kept > rows[1].is_kept and match is matches[0]):
            return rows[0].id
        if rows:
            raise _ambiguous(connection, text, {row.id: row.name for row in rows})
    names = connection.scalars(select(Job.name).order_by(Job.id.desc()).limit(NAMES_COMPARED))
    raise ConfigError(f"no job {text!r}: {_nearest(text, names)}")


def _ambiguous(connection: Connection, text: str, jobs: Mapping[int, str]) -> ConfigError:
    """The error for a text that means all these jobs, given with their names."""
    members = select(SweepJob.job_id, Sweep.name).join(Sweep).where(SweepJob.job_id.in_(jobs))
    rows = connection.execute(members.order_by(Sweep.id)).all()
    listed = []
    for id_, name in jobs.items():
        sweeps = " and ".join(sweep for job, sweep in rows if job == id_)
        listed.append(f"{name} (job {id_} in {sweeps or 'no sweep'})")
    more = ", ..." if len(listed) > LISTED else ""
    counts = Counter(sweep for _, sweep in rows)
    only = next((sweep for sweep, count in counts.items() if count == 1), None)
    is_name = any(name.endswith(text) for name in jobs.values())
    hint = f" or by its sweep, {f'{only}/{text}'!r}" if only and is_name else ""
    found = ", ".join(listed[:LISTED]) + more
    return ConfigError(f"job {text!r} is ambiguous: {found}: name one by its number{hint}")


def _nearest(text: str, names: Iterable[str]) -> str:
    known = list(dict.fromkeys(names))
    if not known:
        return "the database has none yet; submit a grid first"
    return did_you_mean(text, known, most=3) or f"there is {', '.join(known[:LISTED])}"


@dataclass(frozen=True, kw_only=True)
class ParentRow:
    """A parent of a job and its state."""

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
    """The progress that its controller last wrote."""


@dataclass(frozen=True, kw_only=True)
class ClosestJob:
    """The done job that differs in the fewest settings: {"optimisation.lr": (here, there)}."""

    job_id: int
    identity: str
    name: str
    differences: dict[str, tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A job and the reasons for its state; fields that do not apply are empty."""

    job_id: int
    identity: str
    kind: str
    name: str
    state: str
    why: tuple[str, ...]
    """Sentences: the reasons for the state, the most direct one first."""
    sweeps: tuple[str, ...]
    """Names of the sweeps that share the job."""
    parents: tuple[ParentRow, ...]
    attempts: tuple[AttemptRow, ...]
    """The oldest first."""
    folder: str | None
    """Folder of the accepted result."""
    nearest_done: ClosestJob | None
    spec: dict[str, Any]


def finished_folder(engine: Engine, kind: str, job: str | int) -> str:
    """The folder of a finished job of a kind, which its name may leave out.

    Relative to the store's root. Raises ConfigError for an unknown, an unfinished or another job.
    """
    with reading(engine) as connection:
        id_ = find_job(connection, job, kind)
        columns = select(Job.kind, Job.name, Job.state, Result.folder)
        joined = columns.join_from(Job, Result, Result.job_id == Job.id, isouter=True)
        found = connection.execute(joined.where(Job.id == id_)).one()
    if found.kind != kind or not found.folder:
        raise ConfigError(
            f"{found.name!r} ({found.kind}, {found.state}): a finished {kind} job is needed"
        )
    return found.folder


def explain(engine: Engine, job: str | int, *, compare: bool = True) -> Explanation:
    """Explain why the job waits, was retried, skipped or shared, and which done job is closest.

    `compare` searches the closest done job, which reads the specs of up to `COMPARED` others.
    Raises ConfigError for an unknown job, with the nearest names.
    """
    with reading(engine) as connection:
        id_ = find_job(connection, job)
        row = connection.execute(
            select(Job, Definition.spec, Result.folder, now_s().label("now"))
            .join(Definition, Definition.job_id == Job.id)
            .outerjoin(Result, Result.job_id == Job.id)
            .where(Job.id == id_)
        ).one()
        parents = _parents(connection, id_)
        attempts = _attempts(connection, id_)
        member = select(Sweep.name, Sweep.state).join(SweepJob).where(SweepJob.job_id == id_)
        sweeps = dict(connection.execute(member.order_by(Sweep.id)).tuples().all())
        nearest = None
        if compare and row.state != State.DONE:
            nearest = _nearest_done(connection, row, parents)
    stored = ("identity", "kind", "name", "state", "folder", "spec")
    return Explanation(
        job_id=id_,
        **{name: getattr(row, name) for name in stored},
        why=tuple(_why(row, parents, attempts, sweeps)),
        sweeps=tuple(sweeps),
        parents=parents,
        attempts=attempts,
        nearest_done=nearest,
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
        reasons.append(_why_unclaimed(row, sweeps))
    if row.state == State.RUNNING:
        last = attempts[-1]
        node = last.node or (last.progress or {}).get("node") or "a node not yet known"
        reasons.append(f"attempt {last.token} runs on {node}")
    if row.state == State.DONE:
        reasons.append(f"has the accepted result of attempt {attempts[-1].token}: {row.folder}")
    if row.state == State.FAILED:
        reasons.append(f"failed for good: {row.failure}: {row.reason}")
    if row.state == State.SKIPPED:
        reasons.append(f"skipped: {row.reason}")
    if row.state == State.CANCELLED:
        reasons.append("cancelled by request; `xsweep retry` reopens it")
    for attempt in attempts:
        if attempt.outcome not in (None, "done"):
            parts = [f"attempt {attempt.token} {attempt.outcome}", attempt.failure, attempt.reason]
            reasons.append(": ".join(part for part in parts if part))
    if len(sweeps) > 1:
        reasons.append(f"one job for the sweeps {', '.join(sweeps)}")
    return reasons


def _why_unclaimed(row: Any, sweeps: dict[str, str]) -> str:
    if "active" not in sweeps.values():
        states = ", ".join(f"{name} is {state}" for name, state in sweeps.items())
        return f"ready, but its sweeps are not active: {states or 'it is in none'}"
    if row.retry_at is not None and row.retry_at > row.now:
        return f"tries again in {row.retry_at - row.now:.0f} s"
    return "ready to be claimed; jobs with longer chains behind them go first"


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
    connection: Connection, row: Any, parents: tuple[ParentRow, ...]
) -> ClosestJob | None:
    done = (
        select(Job.id, Job.identity, Job.name, Definition.spec)
        .join(Definition)
        .where(Job.kind == row.kind, Job.state == State.DONE, Job.id != row.id)
        .order_by(Job.id.desc())
        .limit(COMPARED)
    )
    settings = leaves(row.spec)
    differing = (
        (compare_settings(settings, leaves(other.spec)), other)
        for other in connection.execute(done)
    )
    differences, closest = min(differing, key=lambda pair: len(pair[0]), default=({}, None))
    if closest is None:
        return None
    # equal settings on other inputs make another job, too
    inputs = {f"inputs.{each.role}": each.identity for each in parents}
    parents = _parents(connection, closest.id)
    others = {f"inputs.{each.role}": each.identity for each in parents}
    differences |= compare_settings(inputs, others)
    return ClosestJob(
        job_id=closest.id, identity=closest.identity, name=closest.name, differences=differences
    )


def compare_settings(here: dict[str, Any], there: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The differing ones of two jobs' `leaves`, as pairs; a missing one counts as None."""
    return {
        key: (here.get(key), there.get(key))
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    }


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every value that is not a dict, by its dotted path; lists are compared as a whole."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= leaves(item, f"{path}.{key}" if path else str(key))
    return found
