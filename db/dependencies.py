"""What a job's end means to those that wait for it, and which jobs those are."""

from collections.abc import Collection, Iterable
from functools import cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Executable,
    FromClause,
    and_,
    any_,
    bindparam,
    case,
    exists,
    func,
    select,
    update,
)

from xsweep.db.events import record
from xsweep.db.schema import BROKEN, Edge, Job, State, now_s
from xsweep.db.transaction import pieces


def lock(connection: Connection, job_ids: Iterable[int]) -> None:
    """Hold the rows of jobs until the transaction ends; in ascending order, so nobody deadlocks."""
    if connection.dialect.name == "sqlite":
        return  # the transaction holds the whole database already
    for piece in pieces(sorted(job_ids)):
        held = select(Job.id).where(Job.id.in_(piece)).order_by(Job.id).with_for_update()
        connection.execute(held).all()


def move(connection: Connection, job_ids: Iterable[int], state: State, **values: Any) -> None:
    """Bring jobs into a state, which the caller has found to be a legal move for all of them."""
    for piece in pieces(sorted(job_ids)):
        connection.execute(update(Job).where(Job.id.in_(piece)).values(state=state, **values))


def children(connection: Connection, job_ids: Iterable[int], state: State) -> set[int]:
    """Ids of the jobs in a state that wait for one of these."""
    found: set[int] = set()
    for piece in pieces(sorted(job_ids)):
        waiting = select(Job.id).join(Edge, Edge.child_id == Job.id)
        found |= set(
            connection.scalars(waiting.where(Edge.parent_id.in_(piece), Job.state == state))
        )
    return found


def wake_children(connection: Connection, job_ids: Collection[int]) -> list[int]:
    """Count new results for every job that needs them; returns those that need nothing more.

    At most `xsweep.db.transaction.PIECE` results at a time.
    """
    rows = connection.execute(_waking(connection.dialect.name), {"done": list(job_ids)})
    return sorted(id_ for id_, state in rows if state == State.READY)


@cache
def _waking(dialect: str) -> Executable:
    fed: ColumnElement[bool]
    if dialect == "postgresql":  # one text, and one plan, for any number
        fed = Edge.parent_id == any_(bindparam("done", type_=ARRAY(BigInteger)))
    else:
        fed = Edge.parent_id.in_(bindparam("done", expanding=True))
    # counted once for all: looked up for each child, a parent of n children would cost n * n steps
    counts = select(Edge.child_id.label("id"), func.count().label("edges")).where(fed)
    news: FromClause = counts.group_by(Edge.child_id).subquery("news")
    if dialect == "postgresql":
        # held in ascending order first, see `lock`
        held = select(Job.id, news.c.edges).join(news, news.c.id == Job.id)
        news = held.order_by(Job.id).with_for_update(of=Job).cte("held")
    missing = Job.missing_parents - news.c.edges
    ready = case((and_(Job.state == State.WAITING, missing == 0), State.READY), else_=Job.state)
    counted = update(Job).where(Job.id == news.c.id).values(missing_parents=missing, state=ready)
    return counted.returning(Job.id, Job.state)


def skip_descendants(connection: Connection, job_ids: Collection[int], reason: str) -> None:
    """Skip what waits for these jobs, generation by generation.

    Each generation is looked up after the one before it is locked: a child that was being added
    meanwhile is either seen here or sees its parent skipped.
    """
    parents = set(job_ids)
    while parents:
        lock(connection, children(connection, parents, State.WAITING))
        skipped = children(connection, parents, State.WAITING)
        move(connection, skipped, State.SKIPPED, reason=reason, ended_at=now_s())
        record(connection, "skipped", *({"job_id": id_, "reason": reason} for id_ in skipped))
        parents = skipped


def reopen(connection: Connection, job_ids: Collection[int]) -> set[int]:
    """Let broken jobs try again, and what was skipped because of them, as far as nothing else of
    theirs is broken. Returns the ids of all that wait or are ready now."""
    todo, reopened = set(job_ids), set[int]()
    while able := _unhindered(connection, todo):
        lock(connection, able)
        ready = case((Job.missing_parents == 0, State.READY), else_=State.WAITING)
        fresh = {"forgiven_token": Job.token, "retry_at": None}
        none = {"failure": None, "reason": None, "ended_at": None}
        for piece in pieces(sorted(able)):
            again = update(Job).where(Job.id.in_(piece), Job.state.in_(BROKEN))
            connection.execute(again.values(state=ready, **fresh, **none))
        record(connection, "retried", *({"job_id": id_} for id_ in sorted(able)))
        reopened |= able
        todo = (todo - able) | children(connection, able, State.SKIPPED)
    return reopened


def ancestors(connection: Connection, job_id: int, states: Iterable[State]) -> set[int]:
    """Ids of the jobs in these states that the job needs, directly or not."""
    tree = select(Edge.parent_id).where(Edge.child_id == job_id).cte("tree", recursive=True)
    tree = tree.union(select(Edge.parent_id).where(Edge.child_id == tree.c.parent_id))
    return set(
        connection.scalars(
            select(Job.id).where(Job.id.in_(select(tree.c.parent_id)), Job.state.in_(tuple(states)))
        )
    )


def _unhindered(connection: Connection, job_ids: Collection[int]) -> set[int]:
    """Those of the jobs that are broken while none of their parents is."""
    parent = Job.__table__.alias("parent")
    hindered = exists().where(
        Edge.child_id == Job.id, Edge.parent_id == parent.c.id, parent.c.state.in_(BROKEN)
    )
    found: set[int] = set()
    for piece in pieces(sorted(job_ids)):
        able = select(Job.id).where(Job.id.in_(piece), Job.state.in_(BROKEN), ~hindered)
        found |= set(connection.scalars(able))
    return found
