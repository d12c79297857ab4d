"""The dependency graph: wake, skip or reopen the jobs downstream of one that ended."""

from collections.abc import Collection, Iterable
from functools import cache
from typing import Any

import sqlalchemy as sa

from xsweep.db.events import record_jobs
from xsweep.db.schema import BROKEN, Edge, Job, State, Sweep, SweepJob, now_s
from xsweep.db.transaction import among, listed

IN_ACTIVE_SWEEP = sa.exists().where(
    SweepJob.job_id == Job.id, SweepJob.sweep_id == Sweep.id, Sweep.state == "active"
)


def lock(connection: sa.Connection, job_ids: Collection[int]) -> None:
    """Lock the rows of jobs until the transaction ends; in ascending order, against deadlocks."""
    if connection.dialect.name == "postgresql":  # SQLite's transaction locks the whole database
        rows = sa.select(Job.id).where(among(connection, Job.id, job_ids)).order_by(Job.id)
        locked = rows.with_for_update().subquery()
        connection.execute(sa.select(sa.func.count()).select_from(locked))


def move(connection: sa.Connection, job_ids: Collection[int], state: State, **values: Any) -> None:
    """Set the state of jobs, which the caller knows to be a legal move for all of them."""
    jobs = sa.update(Job).where(among(connection, Job.id, job_ids))
    connection.execute(jobs.values(state=state, **values))


def children(
    connection: sa.Connection, job_ids: Collection[int], states: Iterable[State] = tuple(State)
) -> set[int]:
    """The ids of the jobs in these states that need one of these."""
    needing = sa.select(Job.id).join(Edge, Edge.child_id == Job.id)
    needing = needing.where(Job.state.in_(tuple(states)))
    needing = needing.where(among(connection, Edge.parent_id, job_ids))
    return set(connection.scalars(needing).all())


def ancestors(connection: sa.Connection, job_id: int, states: Iterable[State]) -> set[int]:
    """The ids of the jobs in these states that the job needs, directly or not."""
    tree = sa.select(Edge.parent_id).where(Edge.child_id == job_id).cte("tree", recursive=True)
    tree = tree.union(sa.select(Edge.parent_id).where(Edge.child_id == tree.c.parent_id))
    found = sa.select(Job.id).where(Job.id.in_(sa.select(tree.c.parent_id)))
    return set(connection.scalars(found.where(Job.state.in_(tuple(states)))))


def done_descendants(connection: sa.Connection, job_id: int, *, locked: bool) -> set[int]:
    """The ids of a job and of all done jobs that depend on it; none if it is not done itself."""
    itself = sa.select(Job.id).where(Job.id == job_id, Job.state == State.DONE)
    tree = itself.cte("tree", recursive=True)
    child = sa.select(Edge.child_id).join(Job, Job.id == Edge.child_id)
    tree = tree.union(child.where(Edge.parent_id == tree.c.id, Job.state == State.DONE))
    found = set[int]()
    # jobs may end, be redone or be added until these are locked
    while found != (latest := set(connection.scalars(sa.select(tree.c.id)))):
        found = latest
        if locked:
            lock(connection, found | children(connection, found))
    return found


def await_again(connection: sa.Connection, job_ids: Collection[int]) -> None:
    """Let the children of jobs whose results were retired wait for new ones."""
    counts = sa.select(Edge.child_id.label("id"), sa.func.count().label("edges"))
    counts = counts.where(among(connection, Edge.parent_id, job_ids)).group_by(Edge.child_id)
    fed = counts.subquery("fed")
    state = sa.case((Job.state.in_((State.READY, State.RUNNING)), State.WAITING), else_=Job.state)
    missing = Job.missing_parents + fed.c.edges
    waiting = sa.update(Job).where(Job.id == fed.c.id)
    connection.execute(waiting.values(missing_parents=missing, state=state))


def needed_by_sweep(job_id: Any, besides: int | None = None) -> sa.ColumnElement[bool]:
    """The condition that a sweep that is not cancelled, `besides` apart, contains the job."""
    member, sweep = SweepJob.__table__.alias("member").c, Sweep.__table__.alias("owner").c
    found = sa.exists().where(
        member.job_id == job_id, member.sweep_id == sweep.id, sweep.state != "cancelled"
    )
    return found if besides is None else found.where(sweep.id != besides)


def wake_children(connection: sa.Connection, job_ids: Collection[int]) -> list[int]:
    """Count new results for every job that needs them; returns those that are ready now.

    Takes at most `xsweep.db.transaction.PIECE` results at a time.
    """
    rows = connection.execute(_wake(connection.dialect.name), {"done": list(job_ids)})
    return sorted(id_ for id_, state in rows if state == State.READY)


@cache
def _wake(dialect: str) -> sa.Executable:
    new_result: sa.ColumnElement[bool]
    if dialect == "postgresql":  # one text, and one plan, for any number
        new_result = Edge.parent_id == sa.any_(sa.bindparam("done", type_=sa.ARRAY(sa.BigInteger)))
    else:
        new_result = Edge.parent_id.in_(sa.bindparam("done", expanding=True))
    # counted once for all: looked up for each child, a parent of n children would cost n * n steps
    counts = sa.select(Edge.child_id.label("id"), sa.func.count().label("edges")).where(new_result)
    fed: sa.FromClause = counts.group_by(Edge.child_id).subquery("fed")
    if dialect == "postgresql":
        # locked in ascending order first, see `lock`
        locked = sa.select(Job.id, fed.c.edges).join(fed, fed.c.id == Job.id)
        fed = locked.order_by(Job.id).with_for_update(of=Job).cte("locked")
    missing = Job.missing_parents - fed.c.edges
    woken = (Job.state == State.WAITING) & (missing == 0)
    ready = sa.case((woken, State.READY), else_=Job.state)
    counted = sa.update(Job).where(Job.id == fed.c.id).values(missing_parents=missing, state=ready)
    return counted.returning(Job.id, Job.state)


def skip_descendants(connection: sa.Connection, job_ids: Collection[int], reason: str) -> None:
    """Skip the jobs that wait for these, generation by generation.

    Each generation is looked up again after it is locked: a child that is being added meanwhile is
    either found here or finds its parent skipped.
    """
    parents = set(job_ids)
    while parents:
        if waiting := children(connection, parents, [State.WAITING]):
            lock(connection, waiting)
            waiting = children(connection, parents, [State.WAITING])
            move(connection, waiting, State.SKIPPED, reason=reason, ended_at=now_s())
            record_jobs(connection, "skipped", waiting, reason=reason)
        parents = waiting


def reopen(connection: sa.Connection, job_ids: Collection[int]) -> set[int]:
    """Let the broken ones of the jobs run again, except those that need another broken job.

    Returns the ids of these, which are waiting or ready now.
    """
    able = set(job_ids)
    while (fewer := _needing_no_broken_but(connection, able)) != able:
        able = fewer
    ready = sa.case((Job.missing_parents == 0, State.READY), else_=State.WAITING)
    cleared = dict.fromkeys(("retry_at", "failure", "reason", "ended_at"))
    again = sa.update(Job).where(among(connection, Job.id, able))
    connection.execute(again.values(state=ready, forgiven_token=Job.token, **cleared))
    record_jobs(connection, "retried", able)
    return able


def _needing_no_broken_but(connection: sa.Connection, job_ids: Collection[int]) -> set[int]:
    """The broken ones of the jobs that need no broken job but these, locked as `lock` does."""
    parent = Job.__table__.alias("parent").c
    hindered = sa.exists().where(
        Edge.child_id == Job.id,
        Edge.parent_id == parent.id,
        parent.state.in_(BROKEN),
        # not `~among`: PostgreSQL would compare each edge with one element after the other
        Edge.parent_id.not_in(listed(connection, Edge.parent_id, job_ids)),
    )
    broken = sa.select(Job.id).where(Job.state.in_(BROKEN), ~hindered)
    locked = broken.order_by(Job.id).with_for_update(of=Job)
    return set(connection.scalars(locked.where(among(connection, Job.id, job_ids))).all())
