"""Taking jobs and keeping them: claims, leases, and the attempts that hold them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    exists,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from db.bulk import pieces
from db.clock import now_s
from db.events import record
from db.schema import Attempt, Definition, Edge, Job, Result, Sweep, SweepJob
from db.states import State
from db.transactions import transact


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job to run now, held under `token` as long as its lease is renewed."""

    job_id: int
    identity: str
    kind: str
    name: str
    spec: dict[str, Any]
    resources: dict[str, Any]
    token: int
    inputs: dict[str, str]
    """Folder of the accepted result of the parent in each role."""
    previous: tuple[str, ...]
    """Folders of earlier attempts, the newest first: checkpoints may be there."""

    @property
    def attempt(self) -> int:
        """Number of the try, 1 at first; every claim is one, so it is the token."""
        return self.token


def claim(
    engine: Engine,
    *,
    owner: str,
    limit: int,
    lease_s: float,
    kinds: Sequence[str] | None = None,
    exclude: Collection[int] = (),
) -> list[Claim]:
    """Take up to `limit` ready jobs: by priority, then by the longest chain behind, then by age.

    Jobs of sweeps that are all paused are left, as are those whose `retry_at` is to come. When the
    connection breaks after the commit, the jobs are held by `owner` all the same and appear in
    `running`; a lease that nobody renews ends.
    """
    if limit < 1:
        return []
    return transact(engine, lambda c: _claim(c, owner, limit, lease_s, kinds, exclude))


def started(
    engine: Engine,
    *,
    job_id: int,
    token: int,
    actor: str,
    node: str,
    folder: str,
    log: str,
    owner: str | None = None,
) -> bool:
    """Note where the attempt runs. False: it is no longer held, stop it."""

    hold = Hold(job_id, token, owner)
    place = {"actor": actor, "node": node, "folder": folder, "log": log}

    def work(connection: Connection) -> bool:
        noted = update(Attempt).where(*live(hold)).values(started_at=now_s(), **place)
        holder = connection.scalar(noted.returning(Attempt.owner))
        if holder is None:
            return False
        record(connection, "started", {**hold._asdict(), **place, "owner": holder})
        return True

    return transact(engine, work)


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


def inputs(connection: Connection, job_ids: Iterable[int]) -> dict[int, dict[str, str]]:
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


def _claim(
    connection: Connection,
    owner: str,
    limit: int,
    lease_s: float,
    kinds: Sequence[str] | None,
    exclude: Collection[int],
) -> list[Claim]:
    wanted_by_active_sweep = exists().where(
        SweepJob.job_id == Job.id, SweepJob.sweep_id == Sweep.id, Sweep.state == "active"
    )
    candidates = (
        select(Job.id)
        .where(Job.state == State.READY, or_(Job.retry_at.is_(None), Job.retry_at <= now_s()))
        .where(wanted_by_active_sweep)
        .order_by(Job.priority.desc(), Job.critical_s.desc(), Job.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=Job)
    )
    if kinds is not None:
        candidates = candidates.where(Job.kind.in_(kinds))
    if exclude:
        candidates = candidates.where(Job.id.not_in(exclude))
    # materialised: inlined, the sub-query may run more than once and take more than the limit
    picked = candidates.cte("picked").prefix_with("MATERIALIZED")
    take = (
        update(Job)
        .where(Job.id.in_(select(picked.c.id)))
        .values(state=State.RUNNING, token=Job.token + 1, retry_at=None)
        .returning(
            Job.id, Job.identity, Job.kind, Job.name, Job.token, Job.priority, Job.critical_s
        )
    )
    taken = connection.execute(take).all()
    if not taken:
        return []
    taken = sorted(taken, key=lambda row: (-row.priority, -row.critical_s, row.id))
    attempts = [{"job_id": row.id, "token": row.token, "owner": owner} for row in taken]
    lease = {"claimed_at": now_s(), "lease_until": now_s() + lease_s}
    connection.execute(insert(Attempt).values(lease), attempts)
    record(connection, "claimed", *attempts)
    ids = [row.id for row in taken]
    definitions = {
        row.job_id: row
        for row in connection.execute(
            select(Definition.job_id, Definition.spec, Definition.resources).where(
                Definition.job_id.in_(ids)
            )
        )
    }
    folders = inputs(connection, ids)
    earlier: dict[int, list[str]] = {id_: [] for id_ in ids}
    if again := [row.id for row in taken if row.token > 1]:
        for job_id, folder in connection.execute(
            select(Attempt.job_id, Attempt.folder)
            .where(Attempt.job_id.in_(again), Attempt.folder.is_not(None))
            .order_by(Attempt.token.desc())
        ):
            earlier[job_id].append(str(folder))
    return [
        Claim(
            job_id=row.id,
            identity=row.identity,
            kind=row.kind,
            name=row.name,
            spec=definitions[row.id].spec,
            resources=definitions[row.id].resources,
            token=row.token,
            inputs=folders[row.id],
            previous=tuple(earlier[row.id]),
        )
        for row in taken
    ]
