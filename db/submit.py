"""Adding a sweep: its jobs and edges in one transaction, each job once however often asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sqlalchemy import Connection, Engine, Row, Text, cast, func, insert, select, text, update

from xsweep.db.events import record
from xsweep.db.schema import BROKEN, Definition, Edge, Job, State, Sweep, SweepJob, now_s
from xsweep.db.tally import fold
from xsweep.db.transaction import among, insert_rows, pieces, reading, to_json, transact
from xsweep.errors import ConfigError

ANALYSED = 500
"""New jobs from which on the database's statistics are brought up to date at once."""


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job to be done; see `xsweep.db.schema` for what the fields become."""

    identity: str
    """SHA-256, 64 hexadecimal digits, of everything that changes the result."""
    kind: str
    name: str
    spec: dict[str, Any]
    parents: dict[str, str] = field(default_factory=dict)
    """Identity of the job whose result is needed, by role."""
    resources: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    """What this sweep's report calls the job."""
    cost: float = 1.0
    """Expected seconds; decides which chain of jobs is the longest."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a submission found and added, in jobs."""

    sweep_id: int | None
    """None: the sweep is not there (a preview)."""
    new: int
    shared: int
    """Were there before, also for another sweep."""
    done: int
    """Have a result already."""
    total: int


def add_sweep(engine: Engine, *, name: str, grid: str, jobs: Sequence[NewJob]) -> Submission:
    """Add the jobs, and the sweep if its name is new; what is there already is kept as it is.

    Submitting again writes nothing; a larger grid adds its new cells to the sweep of that name.
    Parents must be in `jobs` or in the database. Raises ConfigError for an identity given twice, an
    unknown parent, or parents in a circle.
    """
    ordered = parents_first(jobs)
    return transact(engine, lambda connection: add_in(connection, name, grid, ordered))


def preview(engine: Engine, *, name: str, jobs: Sequence[NewJob]) -> Submission:
    """What `add_sweep` would find and add; writes nothing."""
    with reading(engine) as connection:
        sweep = connection.scalar(select(Sweep.id).where(Sweep.name == name))
        return _submission(connection, sweep, jobs, _known(connection, jobs))


def add_in(connection: Connection, name: str, grid: str, jobs: list[NewJob]) -> Submission:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('xsweep_submit'))"))
    known = _known(connection, jobs)
    new = [job for job in jobs if job.identity not in known]
    _add_jobs(connection, jobs, new, known)
    ids = {identity: row.id for identity, row in known.items()}
    added = among(connection, Job.identity, [job.identity for job in new])
    ids |= dict(connection.execute(select(Job.identity, Job.id).where(added)).tuples().all())
    insert_rows(
        connection,
        Definition,
        ("job_id", "spec", "resources", "cost_s"),
        ((ids[job.identity], to_json(job.spec), to_json(job.resources), job.cost) for job in new),
    )
    insert_rows(
        connection,
        Edge,
        ("child_id", "role", "parent_id"),
        (
            (ids[job.identity], role, ids[parent])
            for job in new
            for role, parent in job.parents.items()
        ),
    )
    sweep = _add_members(connection, name, grid, {ids[job.identity]: job for job in jobs}, len(new))
    fold(connection)
    if len(new) > ANALYSED and connection.dialect.name == "postgresql":
        # the planner would believe the tables to be empty, and sort all ready jobs at each claim
        connection.execute(text("ANALYZE job, sweep_job, sweep, edge, definition"))
    return _submission(connection, sweep, jobs, known)


def _add_jobs(
    connection: Connection, jobs: list[NewJob], new: list[NewJob], known: dict[str, Row]
) -> None:
    """Insert the new jobs, each in the state that its parents' states allow."""
    if not new:
        return
    states = _parent_states(connection, new, known)
    critical_s = _critical_s(jobs)
    now = connection.scalar(select(now_s()))

    def rows() -> Iterable[tuple]:
        for job in new:
            parents = [states[parent] for parent in job.parents.values()]
            missing = sum(state != State.DONE for state in parents)
            broken = any(state in BROKEN for state in parents)
            state = State.SKIPPED if broken else State.WAITING if missing else State.READY
            states[job.identity] = state
            reason = "a parent failed or was cancelled before" if broken else None
            yield (
                *(job.identity, job.kind, job.name, str(state), missing),
                *(0, critical_s[job.identity], 0, 0, reason, now),
                now if broken else None,
            )

    columns = "identity kind name state missing_parents priority critical_s token forgiven_token"
    insert_rows(connection, Job, (*columns.split(), "reason", "created_at", "ended_at"), rows())
    for identity, row in known.items():
        # a new child may make the longest chain behind an old job longer
        if critical_s.get(identity, 0.0) > row.critical_s:
            raised = update(Job).where(Job.id == row.id)
            connection.execute(raised.values(critical_s=critical_s[identity]))


def _parent_states(
    connection: Connection, new: list[NewJob], known: dict[str, Row]
) -> dict[str, str]:
    """States of the old parents of new jobs, held still until the end of the transaction.

    Otherwise one could end between this look at it and the edge that would make it wake its child.
    """
    parents = {p for job in new for p in job.parents.values() if p in known}
    states: dict[str, str] = {}
    for piece in pieces(sorted(known[parent].id for parent in parents)):
        held = select(Job.identity, Job.state).where(Job.id.in_(piece)).order_by(Job.id)
        states |= dict(connection.execute(held.with_for_update(read=True)).tuples().all())
    return states


def _add_members(
    connection: Connection, name: str, grid: str, jobs: dict[int, NewJob], new: int
) -> int:
    """Make or extend the sweep; write only what differs. Returns its id."""
    sweep = connection.execute(select(Sweep.id, Sweep.grid).where(Sweep.name == name)).one_or_none()
    if sweep is None:
        made = insert(Sweep).values(name=name, grid=grid, state="active", created_at=now_s())
        id_, old_grid = connection.execute(made.returning(Sweep.id, Sweep.grid)).one()
        members = {}
    else:
        id_, old_grid = sweep
        found = select(SweepJob.job_id, cast(SweepJob.labels, Text)).where(SweepJob.sweep_id == id_)
        members = dict(connection.execute(found).tuples().all())
    labels = {job_id: to_json(job.labels) for job_id, job in jobs.items()}
    added = [job_id for job_id in labels if job_id not in members]
    renamed = [job_id for job_id in labels if members.get(job_id, labels[job_id]) != labels[job_id]]
    insert_rows(
        connection,
        SweepJob,
        ("sweep_id", "job_id", "labels"),
        ((id_, job_id, labels[job_id]) for job_id in added),
    )
    for job_id in renamed:
        place = update(SweepJob).where(SweepJob.sweep_id == id_, SweepJob.job_id == job_id)
        connection.execute(place.values(labels=jobs[job_id].labels))
    if grid != old_grid:
        connection.execute(update(Sweep).where(Sweep.id == id_).values(grid=grid))
    if added:
        reopened = update(Sweep).where(Sweep.id == id_, Sweep.state == "cancelled")
        connection.execute(reopened.values(state="active"))
    if added or renamed or grid != old_grid:
        counts = {"new": new, "added": len(added), "renamed": len(renamed)}
        record(connection, "submitted", {"sweep_id": id_, **counts})
    return id_


def _submission(
    connection: Connection, sweep: int | None, jobs: Sequence[NewJob], known: dict[str, Row]
) -> Submission:
    old = [known[job.identity] for job in jobs if job.identity in known]
    ours = among(connection, SweepJob.job_id, [row.id for row in old])
    elsewhere = select(func.count(SweepJob.job_id.distinct())).where(
        ours, SweepJob.sweep_id != (sweep or 0)
    )
    shared = connection.scalar(elsewhere) or 0
    return Submission(
        sweep_id=sweep,
        new=len(jobs) - len(old),
        shared=shared,
        done=sum(row.state == State.DONE for row in old),
        total=len(jobs),
    )


def _known(connection: Connection, jobs: Sequence[NewJob]) -> dict[str, Row]:
    """Which of the jobs and their parents the database has, by identity."""
    columns = (Job.identity, Job.id, Job.state, Job.critical_s)
    given = {job.identity for job in jobs}
    asked = among(
        connection, Job.identity, sorted(given.union(*(job.parents.values() for job in jobs)))
    )
    rows = {row.identity: row for row in connection.execute(select(*columns).where(asked))}
    for job in jobs:
        for role, parent in job.parents.items():
            if parent not in rows and parent not in given:
                raise ConfigError(f"job {job.name!r}: its parent {role}={parent} is nowhere")
    return rows


def parents_first(jobs: Sequence[NewJob]) -> list[NewJob]:
    """The jobs in an order in which ids may be given to them; see `xsweep.db.schema.Job.id`."""
    by_identity = {job.identity: job for job in jobs}
    if len(by_identity) < len(jobs):
        twice = next(job for job in jobs if by_identity[job.identity] is not job)
        raise ConfigError(f"job {twice.name!r}: its identity {twice.identity} is given twice")
    if _stand_in_order(jobs):
        return list(jobs)
    sorter = TopologicalSorter(
        {job.identity: [p for p in job.parents.values() if p in by_identity] for job in jobs}
    )
    try:
        return [by_identity[identity] for identity in sorter.static_order()]
    except CycleError as error:
        circle = " needs ".join(by_identity[identity].name for identity in error.args[1])
        raise ConfigError(f"jobs need each other in a circle: {circle}") from error


def _stand_in_order(jobs: Sequence[NewJob]) -> bool:
    """Whether no job stands before a parent of its own: the usual case, and ten times as quick."""
    to_come = {job.identity for job in jobs}
    for job in jobs:
        if not to_come.isdisjoint(job.parents.values()):
            return False
        to_come.discard(job.identity)
    return True


def _critical_s(jobs: list[NewJob]) -> dict[str, float]:
    """Seconds of the longest chain of jobs that starts with each job, by identity."""
    cost = {job.identity: job.cost for job in jobs}
    critical_s = dict(cost)
    for job in reversed(jobs):
        for parent in job.parents.values():
            if parent in cost:
                chain_s = cost[parent] + critical_s[job.identity]
                critical_s[parent] = max(critical_s[parent], chain_s)
    return critical_s
