"""Register controllers, the processes that claim jobs, and record their heartbeats."""

from sqlalchemy import Connection, Engine, delete, insert, update

from xsweep.db.schema import Controller, now_s
from xsweep.db.status import fold_tally
from xsweep.db.transaction import transact


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
