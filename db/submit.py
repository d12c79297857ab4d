"""Submit a sweep: its jobs and edges in one transaction, each job once however often submitted."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sqlalchemy import Connection, Engine, Row, Text, cast, func, insert, select, text, update

from xsweep.db.control import lock_sweeps, remove_members
from xsweep.db.dependencies import children, reopen
from xsweep.db.events import record
from xsweep.db.explain import LISTED, compare_settings, leaves
from xsweep.db.schema import BROKEN, Definition, Edge, Job, State, Sweep, SweepJob, now_s
from xsweep.db.status import fold_tally
from xsweep.db.transaction import among, insert_rows, reading, to_json, transact
from xsweep.errors import ConfigError

ANALYSED = 500
"""New jobs from which on the database's statistics are updated at once."""

CELL = ("system", "backbone", "objective", "teacher", "collection")
"""Labels that distinguish the cells of a report; seeds of one cell are averaged."""

EARLY = {"first_stage": 3, "teacher": 2}
"""Priorities of evaluations that need no training, by their label `system`."""

REMEDY = (
    ". Give the grid another name to keep both, or submit it with --replace: jobs that are not in "
    "this grid leave the sweep, their results stay stored"
)
"""End of a refusal of changed cells."""

JOB_COLUMNS = (
    *("identity", "kind", "name", "state", "missing_parents", "priority", "critical_s"),
    *("token", "forgiven_token", "reason", "created_at", "ended_at"),
)


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job to submit; see `xsweep.db.schema` for the columns behind the fields."""

    identity: str
    """SHA-256, 64 hexadecimal digits, of everything that changes the result."""
    kind: str
    name: str
    spec: dict[str, Any]
    parents: dict[str, str] = field(default_factory=dict)
    """Identity of the job whose result is needed, by role."""
    resources: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    """The job's labels in this sweep's report."""
    cost: float = 1.0
    """Expected seconds; decides which chain of jobs is the longest."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The outcome of a submission, in jobs."""

    sweep_id: int | None
    """None: the sweep does not exist (in a preview)."""
    new: int
    shared: int
    """Jobs that another sweep has, too."""
    done: int
    """Jobs that have a result already."""
    total: int
    removed: int = 0
    """Jobs that leave the sweep: replaced, or computed again with more measures."""
    refusal: str = ""
    """The reason why the submission is refused without `replace`."""


def add_sweep(
    engine: Engine, *, name: str, grid: str, jobs: Sequence[NewJob], replace: bool = False
) -> Submission:
    """Add the jobs, and the sweep if its name is new; existing ones are not changed.

    Submitting again writes nothing; a larger grid adds its new cells to the sweep of that name.
    With `replace` all other jobs leave the sweep; their results stay. Parents must be in `jobs` or
    in the database. Raises ConfigError for a duplicate identity, an unknown parent, a circle of
    parents, or cells whose settings differ from the sweep's, unless `replace` is given.
    """
    ordered = parents_first(jobs)
    return transact(
        engine, lambda connection: insert_sweep(connection, name, grid, ordered, replace)
    )


def preview(
    engine: Engine, *, name: str, jobs: Sequence[NewJob], replace: bool = False
) -> Submission:
    """The outcome that `add_sweep` would have; writes nothing. A refusal is not raised."""
    with reading(engine) as connection:
        sweep = connection.scalar(select(Sweep.id).where(Sweep.name == name))
        known = _known(connection, jobs)
        removed, refusal = _compare(connection, sweep, name, jobs, known, replace)
        return _submission(connection, sweep, jobs, known, removed, refusal)


def insert_sweep(
    connection: Connection, name: str, grid: str, jobs: list[NewJob], replace: bool = False
) -> Submission:
    """`add_sweep` within a transaction, with the jobs in the order of `parents_first`."""
    lock_sweeps(connection)
    known = _known(connection, jobs)
    old = connection.scalar(select(Sweep.id).where(Sweep.name == name))
    removed, refusal = _compare(connection, old, name, jobs, known, replace)
    if refusal:
        raise ConfigError(refusal)
    remove_members(connection, old or 0, removed)
    _reopen_removed(connection, known)
    new = [job for job in jobs if job.identity not in known]
    if new:
        _insert_jobs(connection, jobs, new, known)
    ids = {identity: row.id for identity, row in known.items()}
    added = among(connection, Job.identity, [job.identity for job in new])
    ids |= dict(connection.execute(select(Job.identity, Job.id).where(added)).tuples().all())
    definitions = (
        (ids[job.identity], to_json(job.spec), to_json(job.resources), job.cost) for job in new
    )
    columns = ("job_id", "spec", "resources", "cost_s")
    insert_rows(connection, Definition, columns, definitions)
    edges = (
        (ids[job.identity], role, ids[key]) for job in new for role, key in job.parents.items()
    )
    insert_rows(connection, Edge, ("child_id", "role", "parent_id"), edges)
    members = {ids[job.identity]: job for job in jobs}
    sweep = _insert_members(connection, name, grid, members, len(new))
    fold_tally(connection)
    if len(new) > ANALYSED and connection.dialect.name == "postgresql":
        # the planner would believe the tables to be empty, and sort all ready jobs at each claim
        connection.execute(text("ANALYZE job, sweep_job, sweep, edge, definition"))
    return _submission(connection, sweep, jobs, known, removed)


def _compare(
    connection: Connection,
    sweep: int | None,
    name: str,
    jobs: Sequence[NewJob],
    known: dict[str, Row],
    replace: bool,
) -> tuple[list[int], str]:
    """The ids of jobs that leave the sweep, and the reason to refuse the submission or "".

    Compares the sweep's jobs that the grid lacks with the grid's new ones of the same cells.

    The grid may lack cells and seeds that the sweep has, since a sweep is extended; one with more
    measures takes the place of the evaluation with fewer.
    """
    members = set(connection.scalars(select(SweepJob.job_id).where(SweepJob.sweep_id == sweep)))
    absent = sorted(members - {row.id for row in known.values()})
    if replace or not absent:
        return absent, ""
    stored = _load_members(connection, sweep, absent)
    fresh: dict[tuple, dict[Any, NewJob]] = defaultdict(dict)
    kept: set[tuple] = set()
    for job in jobs:
        if cell := _cell(job):
            if job.identity in known and known[job.identity].id in members:
                kept.add(cell)
            else:
                fresh[cell][job.labels.get("seed")] = job
    seeds = defaultdict(set)
    for old in stored.values():
        seeds[_cell(old)].add(old.labels.get("seed"))
    jobs_by_identity = {job.identity: job for job in (*stored.values(), *jobs)}

    @cache
    def differences(here: str, there: str) -> dict[str, tuple[Any, Any]]:
        """Settings that differ between two jobs, or between what they are computed from."""
        if here == there or not {here, there} <= jobs_by_identity.keys():
            return {}
        old, new = jobs_by_identity[here], jobs_by_identity[there]
        found: dict[str, tuple[Any, Any]] = {}
        for role in old.parents.keys() & new.parents.keys():
            found |= differences(old.parents[role], new.parents[role])
        return found | _compare_specs(old.spec, new.spec)

    removed, changed = [], defaultdict[str, dict[str, None]](dict)
    for id_, old in stored.items():
        cell, seed = _cell(old), old.labels.get("seed")
        if cell is None or cell not in fresh:
            continue
        if seed in fresh[cell]:
            new, same_seed = fresh[cell][seed], True
        elif cell in kept or seeds[cell] & fresh[cell].keys():
            continue  # these other seeds say how the grid computes the cell
        else:
            new, same_seed = next(iter(fresh[cell].values())), False
        found = dict(differences(old.identity, new.identity))
        if not same_seed:
            found.pop("seed", None)
        if found.keys() == {"measures"} and set(found["measures"][0]) < set(found["measures"][1]):
            removed += [id_] if same_seed else []
        elif found or same_seed:
            changed[_show(found)][_cell_name(old.labels)] = None
    return ([], _refusal(name, changed)) if changed else (removed, "")


def _load_members(connection: Connection, sweep: int | None, ids: list[int]) -> dict[int, NewJob]:
    """Jobs of a sweep as they were submitted, without resources and costs, by id."""
    parents: dict[int, dict[str, str]] = defaultdict(dict)
    edges = select(Edge.child_id, Edge.role, Job.identity).join(Job, Job.id == Edge.parent_id)
    edges = edges.where(among(connection, Edge.child_id, ids))
    for child_id, role, parent in connection.execute(edges):
        parents[child_id][role] = parent
    columns = (Job.id, Job.identity, Job.kind, Job.name, SweepJob.labels, Definition.spec)
    rows = select(*columns).join_from(SweepJob, Job)
    rows = rows.join(Definition, Definition.job_id == Job.id)
    rows = rows.where(SweepJob.sweep_id == sweep, among(connection, Job.id, ids))
    found = connection.execute(rows.order_by(Job.id)).mappings()
    names = ("identity", "kind", "name", "labels", "spec")
    return {
        row["id"]: NewJob(**{name: row[name] for name in names}, parents=parents[row["id"]])
        for row in found
    }


def _cell(job: NewJob) -> tuple | None:
    """The cell of a training or an evaluation; trials and shared jobs have none."""
    if job.kind not in ("train", "evaluate") or "trial" in job.labels:
        return None
    values = [job.labels.get(label) for label in CELL]
    return (job.kind, *values) if any(values) else None


def _cell_name(labels: Mapping[str, Any]) -> str:
    system = labels.get("system", "run")
    names = ("backbone", "objective", "teacher") if system == "run" else (system,)
    parts = [str(labels[name]) for name in names if labels.get(name)] or [labels["collection"]]
    return " ".join(parts + ([f"s{labels['seed']}"] if "seed" in labels else []))


def _compare_specs(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, without places of files that a checksum identifies."""
    here = leaves(old)
    return {
        key: values
        for key, values in compare_settings(here, leaves(new)).items()
        if not key.endswith(("path", "folder"))
        or not any(here.get(key.rpartition(".")[0] + sum_) for sum_ in (".sha256", ".md5"))
    }


def _show(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """`lr (3e-05 before, 5e-05 now)`: the settings by their keys in a grid file."""
    shown = [
        f"{key.removeprefix('optimisation.')} ({old!r:.60} before, {new!r:.60} now)"
        for key, (old, new) in sorted(differences.items())
    ]
    more = f" and {len(shown) - LISTED} more settings" if len(shown) > LISTED else ""
    return ", ".join(shown[:LISTED]) + more or "inputs"


def _refusal(name: str, changed: Mapping[str, Mapping[str, None]]) -> str:
    parts = []
    for settings, cells in changed.items():
        more = f" and {len(cells) - LISTED} more" if len(cells) > LISTED else ""
        count = f"{len(cells)} cell{'s' * (len(cells) > 1)}"
        parts.append(f"{settings} in {count}: {', '.join([*cells][:LISTED])}{more}")
    more = f"; and {len(parts) - LISTED} more changes" if len(parts) > LISTED else ""
    changes = "; ".join(parts[:LISTED]) + more
    return f"sweep {name!r} has cells that this grid changes: {changes}{REMEDY}"


def _reopen_removed(connection: Connection, known: dict[str, Row]) -> None:
    """Reopen jobs that were cancelled when they left their last sweep, and now join one again."""
    cancelled = [row.id for row in known.values() if row.state == State.CANCELLED]
    member = select(SweepJob.job_id).where(among(connection, SweepJob.job_id, cancelled))
    todo = able = set(cancelled) - set(connection.scalars(member))
    while able:
        able = reopen(connection, todo)
        todo = (todo - able) | children(connection, able, [State.SKIPPED])


def _insert_jobs(
    connection: Connection, jobs: list[NewJob], new: list[NewJob], known: dict[str, Row]
) -> None:
    """Insert the new jobs, each in the state that its parents' states require."""
    states = _parent_states(connection, new, known)
    order = _claim_order(jobs)
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
                *(*order[job.identity], 0, 0, reason, now),
                now if broken else None,
            )

    insert_rows(connection, Job, JOB_COLUMNS, rows())
    for identity in known.keys() & order.keys():
        # a new child may be needed earlier, or lengthen the longest chain behind an existing job
        old = known[identity].priority, known[identity].critical_s
        priority, critical_s = map(max, old, order[identity])
        if (priority, critical_s) != old:
            raised = update(Job).where(Job.id == known[identity].id)
            connection.execute(raised.values(priority=priority, critical_s=critical_s))


def _parent_states(
    connection: Connection, new: list[NewJob], known: dict[str, Row]
) -> dict[str, str]:
    """The states of the existing parents of new jobs, locked until the end of the transaction.

    Otherwise a parent could end between this read and the insertion of the edge by which it wakes
    its child.
    """
    parents = {known[p].id for job in new for p in job.parents.values() if p in known}
    locked = select(Job.identity, Job.state).where(among(connection, Job.id, parents))
    locked = locked.order_by(Job.id).with_for_update(read=True)
    return dict(connection.execute(locked).tuples().all())


def _insert_members(
    connection: Connection, name: str, grid: str, jobs: dict[int, NewJob], new: int
) -> int:
    """Insert or extend the sweep, writing only the differences. Returns its id."""
    sweep = connection.execute(select(Sweep.id, Sweep.grid).where(Sweep.name == name)).one_or_none()
    members: dict[int, str] = {}
    if sweep is None:
        made = insert(Sweep).values(name=name, grid=grid, state="active", created_at=now_s())
        sweep = connection.execute(made.returning(Sweep.id, Sweep.grid)).one()
    else:
        found = select(SweepJob.job_id, cast(SweepJob.labels, Text))
        found = found.where(SweepJob.sweep_id == sweep.id)
        members = dict(connection.execute(found).tuples().all())
    labels = {job_id: to_json(job.labels) for job_id, job in jobs.items()}
    added = [job_id for job_id in labels if job_id not in members]
    renamed = [job_id for job_id in labels if members.get(job_id, labels[job_id]) != labels[job_id]]
    rows = ((sweep.id, job_id, labels[job_id]) for job_id in added)
    insert_rows(connection, SweepJob, ("sweep_id", "job_id", "labels"), rows)
    for job_id in renamed:
        member = update(SweepJob).where(SweepJob.sweep_id == sweep.id, SweepJob.job_id == job_id)
        connection.execute(member.values(labels=jobs[job_id].labels))
    if grid != sweep.grid:
        connection.execute(update(Sweep).where(Sweep.id == sweep.id).values(grid=grid))
    if added:
        cancelled = update(Sweep).where(Sweep.id == sweep.id, Sweep.state == "cancelled")
        connection.execute(cancelled.values(state="active"))
    if added or renamed or grid != sweep.grid:
        counts = {"new": new, "added": len(added), "renamed": len(renamed)}
        replaced = {} if grid == sweep.grid else {"replaced_grid": sweep.grid}  # no text is lost
        record(connection, "submitted", {"sweep_id": sweep.id, **counts, **replaced})
    return sweep.id


def _submission(
    connection: Connection,
    sweep: int | None,
    jobs: Sequence[NewJob],
    known: dict[str, Row],
    removed: list[int],
    refusal: str = "",
) -> Submission:
    old = [known[job.identity] for job in jobs if job.identity in known]
    shared = select(func.count(SweepJob.job_id.distinct())).where(
        among(connection, SweepJob.job_id, [row.id for row in old]),
        SweepJob.sweep_id != (sweep or 0),
    )
    return Submission(
        sweep_id=sweep,
        new=len(jobs) - len(old),
        shared=connection.scalar(shared) or 0,
        done=sum(row.state == State.DONE for row in old),
        total=len(jobs),
        removed=len(removed),
        refusal=refusal,
    )


def _known(connection: Connection, jobs: Sequence[NewJob]) -> dict[str, Row]:
    """The existing ones of the jobs and their parents, by identity."""
    submitted = {job.identity for job in jobs}
    identities = sorted(submitted.union(*(job.parents.values() for job in jobs)))
    columns = (Job.identity, Job.id, Job.state, Job.priority, Job.critical_s)
    query = select(*columns).where(among(connection, Job.identity, identities))
    rows = {row.identity: row for row in connection.execute(query)}
    for job in jobs:
        for role, parent in job.parents.items():
            if parent not in rows and parent not in submitted:
                raise ConfigError(
                    f"job {job.name!r}: its parent {role}={parent} is neither submitted nor stored"
                )
    return rows


def parents_first(jobs: Sequence[NewJob]) -> list[NewJob]:
    """The jobs in an order in which they may get ids; see `xsweep.db.schema.Job.id`.

    Raises ConfigError for a duplicate identity or a circle of parents.
    """
    by_identity = {job.identity: job for job in jobs}
    if len(by_identity) < len(jobs):
        twice = next(job for job in jobs if by_identity[job.identity] is not job)
        raise ConfigError(f"job {twice.name!r}: its identity {twice.identity} is given twice")
    if _is_ordered(jobs):
        return list(jobs)
    sorter = TopologicalSorter(
        {job.identity: [p for p in job.parents.values() if p in by_identity] for job in jobs}
    )
    try:
        return [by_identity[identity] for identity in sorter.static_order()]
    except CycleError as error:
        circle = " needs ".join(by_identity[identity].name for identity in error.args[1])
        raise ConfigError(f"jobs need each other in a circle: {circle}") from error


def _is_ordered(jobs: Sequence[NewJob]) -> bool:
    """True if no job precedes a parent of its own: the usual case, and ten times as quick."""
    to_come = {job.identity for job in jobs}
    for job in jobs:
        if not to_come.isdisjoint(job.parents.values()):
            return False
        to_come.discard(job.identity)
    return True


def _claim_order(jobs: list[NewJob]) -> dict[str, tuple[int, float]]:
    """Priority and seconds of the longest chain of jobs that starts with each job, by identity.

    Rows of the report that need no training come first, with all that they need. Trainings come
    last, so that a trained model is evaluated before the next training starts.
    """
    cost = {job.identity: job.cost for job in jobs}
    priority = {
        job.identity: 0 if job.kind == "train" else EARLY.get(job.labels.get("system", ""), 1)
        for job in jobs
    }
    critical_s = dict(cost)
    for job in reversed(jobs):
        for parent in job.parents.values():
            if parent in cost:
                chain_s = cost[parent] + critical_s[job.identity]
                critical_s[parent] = max(critical_s[parent], chain_s)
                if priority[job.identity] > 1:
                    priority[parent] = max(priority[parent], priority[job.identity])
    return {identity: (priority[identity], critical_s[identity]) for identity in cost}
