"""The processes that claim jobs, and when each was last heard of."""

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, delete, insert, select, update

from db.clock import now_s
from db.schema import Controller
from db.tally import fold
from db.transactions import reading, transact

SILENT_S = 60.0
"""A controller that beats every 15 s or so and was not heard of for longer is taken for dead."""


@dataclass(frozen=True, kw_only=True)
class LiveController:
    """A controller that was heard of lately."""

    owner: str
    host: str
    pid: int
    dashboard_url: str | None
    started_at: float
    silent_s: float


def register(
    engine: Engine, *, owner: str, host: str, pid: int, dashboard_url: str | None = None
) -> None:
    """Announce a controller; `owner` is a fresh UUID per process, never one used before."""

    def work(connection: Connection) -> None:
        connection.execute(delete(Controller).where(Controller.owner == owner))
        times = {"started_at": now_s(), "heartbeat_at": now_s()}
        row = {"owner": owner, "host": host, "pid": pid, "dashboard_url": dashboard_url}
        connection.execute(insert(Controller).values(**row, **times))

    transact(engine, work)


def beat(engine: Engine, owner: str) -> bool:
    """Say that the controller lives. False: it was unregistered and must stop."""

    def work(connection: Connection) -> bool:
        fold(connection)  # somebody must from time to time, and a controller always lives
        heard = update(Controller).where(Controller.owner == owner).values(heartbeat_at=now_s())
        return connection.execute(heard).rowcount == 1

    return transact(engine, work)


def unregister(engine: Engine, owner: str) -> None:
    """Forget a controller that ends, or that is dead."""
    gone = delete(Controller).where(Controller.owner == owner)
    transact(engine, lambda connection: connection.execute(gone))


def live(engine: Engine) -> list[LiveController]:
    """The controllers heard of in the last `SILENT_S` seconds, the newest first."""
    silence = (now_s() - Controller.heartbeat_at).label("silent_s")
    query = select(
        *(Controller.owner, Controller.host, Controller.pid, Controller.dashboard_url),
        *(Controller.started_at, silence),
    )
    query = query.where(silence <= SILENT_S).order_by(Controller.started_at.desc())
    with reading(engine) as connection:
        return [LiveController(**row) for row in connection.execute(query).mappings()]
