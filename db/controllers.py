"""Register controllers, record their heartbeats, and recover the attempts of dead ones."""

from collections.abc import Collection
from dataclasses import replace

from sqlalchemy import Connection, Engine, delete, insert, select, update

from xsweep.db.claim import Claim, Lease, live, read_claims
from xsweep.db.complete import end_attempts, retry_or_fail
from xsweep.db.dependencies import lock
from xsweep.db.events import record
from xsweep.db.schema import Attempt, Controller, now_s
from xsweep.db.status import fold_tally
from xsweep.db.transaction import read, transact


def register(
    engine: Engine, *, owner: str, host: str, pid: int, dashboard_url: str | None = None
) -> None:
    """Add a controller; `owner` is a fresh UUID per process, never one used before."""

    def work(connection: Connection) -> None:
        # a retry finds the row of a first try whose reply was lost
        connection.execute(delete(Controller).where(Controller.owner == owner))
        times = {"started_at": now_s(), "heartbeat_at": now_s()}
        row = {"owner": owner, "host": host, "pid": pid, "dashboard_url": dashboard_url}
        connection.execute(insert(Controller).values(**row, **times))

    transact(engine, work)


def heartbeat(engine: Engine, owner: str) -> bool:
    """Record that the controller is alive. False: it was unregistered and must stop."""

    def work(connection: Connection) -> bool:
        fold_tally(connection)  # must happen from time to time, and some controller is always alive
        beat = update(Controller).where(Controller.owner == owner).values(heartbeat_at=now_s())
        return connection.execute(beat).rowcount == 1

    return transact(engine, work)


def unregister(engine: Engine, owner: str) -> None:
    """Remove a controller that exits, or that is dead."""
    gone = delete(Controller).where(Controller.owner == owner)
    transact(engine, lambda connection: connection.execute(gone))


def running(engine: Engine) -> list[Claim]:
    """The attempts that have not ended, expired leases included."""
    return read(engine, read_claims)


def expired(engine: Engine) -> list[Claim]:
    """The attempts that have not ended but whose leases have: `adopt` or `requeue_expired`."""
    return read(engine, lambda connection: read_claims(connection, Attempt.lease_until < now_s()))


def requeue_expired(engine: Engine, lease: Lease) -> bool:
    """Take a job from the owner of an expired lease; counts as a NODE failure.

    False: that attempt was renewed, adopted or ended meanwhile; nothing changed.
    """
    reason = f"the lease of {lease.owner} ran out"

    def work(connection: Connection) -> bool:
        lock(connection, [lease.job_id])
        overdue = live([lease]) & (Attempt.lease_until < now_s())
        if not end_attempts(connection, overdue, "expired", failure="NODE", reason=reason):
            return False
        retry_or_fail(connection, "expired", lease, "NODE", reason)
        return True

    return transact(engine, work)


def adopt(engine: Engine, claim: Claim, *, owner: str, lease_s: float) -> Claim | None:
    """Continue another owner's attempt as `owner`. None: the attempt is no longer that owner's."""
    adopted = replace(claim, owner=owner)

    def work(connection: Connection) -> Claim | None:
        taken = update(Attempt).where(live([claim.lease]))
        taken = taken.values(owner=owner, lease_until=now_s() + lease_s)
        if not connection.execute(taken).rowcount:
            # a retry of a call whose reply was lost finds the attempt adopted already
            held = connection.scalar(select(Attempt.token).where(live([adopted.lease])))
            return adopted if held is not None else None
        record(connection, "adopted", {**adopted.lease._asdict(), "from": claim.owner})
        return adopted

    return transact(engine, work)


def adopted_by_others(engine: Engine, leases: Collection[Lease]) -> set[Lease]:
    """Those of an owner's leases whose attempts another owner has adopted, ended or not."""
    if not leases:
        return set()
    attempts = select(Attempt.job_id, Attempt.token, Attempt.owner)
    attempts = attempts.where(Attempt.job_id.in_([lease.job_id for lease in leases]))
    rows = read(engine, lambda connection: connection.execute(attempts).all())
    owners = {(row.job_id, row.token): row.owner for row in rows}
    return {lease for lease in leases if owners.get(lease[:2], lease.owner) != lease.owner}
