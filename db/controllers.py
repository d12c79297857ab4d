"""The registry of controllers, the processes that claim jobs, and their heartbeats."""

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, delete, insert, select, update

from xsweep.db.schema import Controller, now_s
from xsweep.db.tally import fold
from xsweep.db.transaction import reading, transact

SILENT_S = 60.0
"""A controller without a heartbeat for longer is presumed dead; they beat every few seconds."""


@dataclass(frozen=True, kw_only=True)
class LiveController:
    """A controller with a recent heartbeat."""

    owner: str
    host: str
    pid: int
    dashboard_url: str | None
    started_at: float
    silent_s: float


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
        fold(connection)  # must happen from time to time, and some controller is always alive
        beat = update(Controller).where(Controller.owner == owner).values(heartbeat_at=now_s())
        return connection.execute(beat).rowcount == 1

    return transact(engine, work)


def unregister(engine: Engine, owner: str) -> None:
    """Remove a controller that exits, or that is dead."""
    gone = delete(Controller).where(Controller.owner == owner)
    transact(engine, lambda connection: connection.execute(gone))


def live(engine: Engine) -> list[LiveController]:
    """The controllers that are alive, the newest first."""
    silent_s = now_s() - Controller.heartbeat_at
    columns = (Controller.owner, Controller.host, Controller.pid, Controller.dashboard_url)
    query = select(*columns, Controller.started_at, silent_s.label("silent_s"))
    query = query.where(silent_s <= SILENT_S).order_by(Controller.started_at.desc())
    with reading(engine) as connection:
        return [LiveController(**row) for row in connection.execute(query).mappings()]
