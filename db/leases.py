"""Keeping jobs: where their attempts run, and the leases that hold them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, tuple_, update

from db.bulk import pieces
from db.clock import now_s
from db.events import record
from db.schema import Attempt
from db.transactions import transact


class Place(NamedTuple):
    """Where an attempt runs."""

    job_id: int
    token: int
    actor: str
    node: str
    folder: str
    log: str


def started(engine: Engine, *, owner: str | None = None, **place: Any) -> bool:
    """Note where one attempt runs, given as the fields of `Place`. False: stop it."""
    return bool(started_all(engine, [Place(**place)], owner=owner))


def started_all(
    engine: Engine, places: Sequence[Place], *, owner: str | None = None
) -> set[tuple[int, int]]:
    """Note where attempts run. Returns the (job id, token) pairs that are held: stop all others."""

    def work(connection: Connection) -> set[tuple[int, int]]:
        noted = []
        for place in places:
            hold = Hold(place.job_id, place.token, owner)
            values = {name: getattr(place, name) for name in ("actor", "node", "folder", "log")}
            start = update(Attempt).where(*live(hold)).values(started_at=now_s(), **values)
            holder = connection.scalar(start.returning(Attempt.owner))
            if holder is not None:
                noted.append({**place._asdict(), "owner": holder})
        record(connection, "started", *noted)
        return {(row["job_id"], row["token"]) for row in noted}

    return transact(engine, work) if places else set()


def renew(
    engine: Engine,
    *,
    owner: str,
    held: Collection[tuple[int, int]],
    lease_s: float,
    progress: Mapping[tuple[int, int], dict[str, Any]] | None = None,
) -> set[tuple[int, int]]:
    """Extend the leases of (job id, token) pairs, and return those still held: stop all others.

    A lease that ran out but that nobody took is held again. `progress`, by pair, is kept with the
    attempt: {"done": 50, "total": 200, "loss": 0.3}.
    """

    def work(connection: Connection) -> set[tuple[int, int]]:
        still: set[tuple[int, int]] = set()
        for piece in pieces(sorted(held)):
            extended = (
                update(Attempt)
                .where(
                    tuple_(Attempt.job_id, Attempt.token).in_(piece),
                    Attempt.owner == owner,
                    Attempt.outcome.is_(None),
                )
                .values(lease_until=now_s() + lease_s)
                .returning(Attempt.job_id, Attempt.token)
            )
            still |= {(job_id, token) for job_id, token in connection.execute(extended)}
        for pair in still & set(progress or ()):
            seen = update(Attempt).where(Attempt.job_id == pair[0], Attempt.token == pair[1])
            connection.execute(seen.values(progress=(progress or {})[pair]))
        return still

    return transact(engine, work) if held else set()


class Hold(NamedTuple):
    """What a write of an attempt is made under; without an owner, the token alone must fit."""

    job_id: int
    token: int
    owner: str | None = None


def live(hold: Hold) -> list[ColumnElement[bool]]:
    """What every write of an attempt requires: it is held still, by this owner if one is named."""
    conditions = [
        Attempt.job_id == hold.job_id,
        Attempt.token == hold.token,
        Attempt.outcome.is_(None),
    ]
    return conditions if hold.owner is None else [*conditions, Attempt.owner == hold.owner]
