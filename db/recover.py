"""What to do about attempts whose owner is gone: see them, adopt them, or take their jobs back."""

from collections.abc import Iterable

from sqlalchemy import ColumnElement, Connection, Engine, select, update

from xsweep.db.claim import Claim, Hold, live
from xsweep.db.complete import end_attempt, retry_or_fail
from xsweep.db.dependencies import lock
from xsweep.db.events import record
from xsweep.db.schema import Attempt, Definition, Edge, Job, Result, now_s
from xsweep.db.transaction import pieces, read, transact


def running(engine: Engine) -> list[Claim]:
    """The attempts that have not ended, expired leases included."""
    return _held(engine)


def expired(engine: Engine) -> list[Claim]:
    """The attempts that have not ended though their leases have: `adopt` or `requeue_expired`."""
    return _held(engine, Attempt.lease_until < now_s())


def requeue_expired(engine: Engine, *, job_id: int, token: int, owner: str) -> bool:
    """Take a job from the owner whose lease ran out; counts as a NODE failure.

    False: that attempt was renewed, adopted or ended meanwhile; nothing changed.
    """
    hold = Hold(job_id, token, owner)
    reason = f"the lease of {owner} ran out"

    def work(connection: Connection) -> bool:
        lock(connection, [job_id])
        overdue = [*live(hold), Attempt.lease_until < now_s()]
        if end_attempt(connection, overdue, "expired", failure="NODE", reason=reason) is None:
            return False
        retry_or_fail(connection, "expired", hold, "NODE", reason)
        return True

    return transact(engine, work)


def adopt(
    engine: Engine, *, job_id: int, token: int, old_owner: str, new_owner: str, lease_s: float
) -> bool:
    """Go on with an attempt that another owner started. False: it is not that owner's any more."""

    old, new = Hold(job_id, token, old_owner), Hold(job_id, token, new_owner)

    def work(connection: Connection) -> bool:
        lease = {"owner": new_owner, "lease_until": now_s() + lease_s}
        if not connection.execute(update(Attempt).where(*live(old)).values(lease)).rowcount:
            held = connection.scalar(select(Attempt.token).where(*live(new)))
            return held is not None  # ours already: the answer to the first time was lost
        record(connection, "adopted", {**new._asdict(), "from": old_owner})
        return True

    return transact(engine, work)


def _held(engine: Engine, *conditions: ColumnElement[bool]) -> list[Claim]:
    columns = (
        *(Attempt.job_id, Attempt.token, Attempt.owner, Attempt.actor, Attempt.node),
        *(Attempt.folder, Attempt.log, Job.identity, Job.kind, Job.name),
        *(Definition.spec, Definition.resources),
    )
    query = (
        select(*columns)
        .join_from(Attempt, Job)
        .join(Definition, Definition.job_id == Job.id)
        .where(Attempt.outcome.is_(None), *conditions)
        .order_by(Attempt.job_id)
    )

    def work(connection: Connection) -> list[Claim]:
        rows = connection.execute(query).mappings().all()
        folders = _inputs(connection, [row["job_id"] for row in rows])
        return [Claim(**row, inputs=folders[row["job_id"]]) for row in rows]

    return read(engine, work)


def _inputs(connection: Connection, job_ids: Iterable[int]) -> dict[int, dict[str, str]]:
    """Folders of the parents' accepted results by role, of each job."""
    found: dict[int, dict[str, str]] = {id_: {} for id_ in job_ids}
    for piece in pieces(list(found)):
        folders = (
            select(Edge.child_id, Edge.role, Result.folder)
            .join(Result, Result.job_id == Edge.parent_id)
            .where(Edge.child_id.in_(piece))
        )
        for child_id, role, folder in connection.execute(folders):
            found[child_id][role] = folder
    return found
