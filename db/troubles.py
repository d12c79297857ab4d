"""What went wrong lately: failed attempts from the history, whether they are tried again or not."""

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, func, select

from db.schema import Event, Job, Sweep, SweepJob
from db.transactions import read

KINDS = ("failed", "expired")
LOOKED_AT = 2_000
"""Events that are looked through for failures: a cost that does not grow with the history."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """An attempt that failed or lost its lease."""

    event: int
    at: float
    job_id: int
    kind: str
    name: str
    token: int
    failure: str
    reason: str
    next: str
    """The job's state after it: `ready` for another try, or `failed`."""
    sweeps: tuple[str, ...] = ()


def last_event(engine: Engine) -> int:
    """Id of the newest event, 0 before there is any."""
    return read(engine, lambda connection: connection.scalar(select(func.max(Event.id))) or 0)


def troubles_since(engine: Engine, event: int) -> list[Trouble]:
    """The failures after an event, the oldest first, with the sweeps that share their jobs."""

    def work(connection: Connection) -> list[Trouble]:
        return _with_sweeps(connection, _troubles(connection, event))

    return read(engine, work)


def latest_troubles(connection: Connection, limit: int, sweep: int | None = None) -> list[Trouble]:
    """The latest failures among the last `LOOKED_AT` events, the newest first; of one sweep's jobs
    where it is named by its id."""
    newest = connection.scalar(select(func.max(Event.id))) or 0
    found = _troubles(connection, newest - LOOKED_AT)
    if sweep is not None and found:
        ids = {each.job_id for each in found}
        mine = select(SweepJob.job_id).where(SweepJob.sweep_id == sweep)
        kept = set(connection.scalars(mine.where(SweepJob.job_id.in_(ids))))
        found = [each for each in found if each.job_id in kept]
    return found[: -limit - 1 : -1]


def _troubles(connection: Connection, event: int) -> list[Trouble]:
    # a range of ids, and not a search for kinds, which have no index
    rows = connection.execute(
        select(Event.id, Event.at, Event.token, Event.detail, Job.id.label("job_id"))
        .add_columns(Job.kind, Job.name)
        .join(Job, Job.id == Event.job_id)
        .where(Event.id > event, Event.kind.in_(KINDS))
        .order_by(Event.id)
    )
    return [
        Trouble(
            event=row.id,
            at=row.at,
            job_id=row.job_id,
            kind=row.kind,
            name=row.name,
            token=row.token or 0,
            failure=str(row.detail.get("failure")),
            reason=str(row.detail.get("reason") or ""),
            next=str(row.detail.get("next")),
        )
        for row in rows
    ]


def _with_sweeps(connection: Connection, found: list[Trouble]) -> list[Trouble]:
    names: dict[int, list[str]] = {each.job_id: [] for each in found}
    members = select(SweepJob.job_id, Sweep.name).join(Sweep).order_by(Sweep.id)
    for job_id, name in connection.execute(members.where(SweepJob.job_id.in_(list(names)))):
        names[job_id].append(name)
    return [Trouble(**{**vars(each), "sweeps": tuple(names[each.job_id])}) for each in found]
