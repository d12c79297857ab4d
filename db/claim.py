"""Taking jobs: the claim of an owner, and what it is told of them.

Keeping jobs: where their attempts run, and the leases that hold them.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Double,
    Engine,
    Executable,
    Integer,
    Select,
    Text,
    bindparam,
    cast,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from xsweep.db.events import record
from xsweep.db.schema import (
    Attempt,
    Definition,
    Edge,
    Event,
    Job,
    Result,
    State,
    Sweep,
    SweepJob,
    now_s,
)
from xsweep.db.transaction import pieces, transact


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job held by `owner` under `token` as long as its lease is renewed."""

    job_id: int
    token: int
    owner: str
    identity: str
    kind: str
    name: str
    spec: dict[str, Any]
    resources: dict[str, Any]
    inputs: dict[str, str]
    """Folder of the accepted result of the parent in each role."""
    previous: tuple[str, ...] = ()
    """Folders of earlier attempts, the newest first, in a new claim: checkpoints may be there."""
    actor: str | None = None
    """This and the next three: where it runs, once it has started."""
    node: str | None = None
    folder: str | None = None
    log: str | None = None


def claim(
    engine: Engine,
    *,
    owner: str,
    limit: int,
    lease_s: float,
    kinds: Sequence[str] | None = None,
    exclude: Collection[int] = (),
) -> list[Claim]:
    """Take up to `limit` ready jobs, those with the longest chain behind first, then the oldest.

    Jobs of sweeps that are all paused are left, as are those whose `retry_at` is to come. When the
    connection breaks after the commit, the jobs are held by `owner` all the same and appear in
    `running`; a lease that nobody renews ends.
    """
    if limit < 1:
        return []
    return transact(engine, lambda c: _claim(c, owner, limit, lease_s, kinds, exclude))


def _claim(
    connection: Connection,
    owner: str,
    limit: int,
    lease_s: float,
    kinds: Sequence[str] | None,
    exclude: Collection[int],
) -> list[Claim]:
    postgresql = connection.dialect.name == "postgresql"
    take = _taking(postgresql, kinds is not None, bool(exclude))
    lease = {"holder": owner, "lease_s": float(lease_s)}
    chosen: dict[str, Any] = {"at_most": limit}
    if kinds is not None:
        chosen["kinds"] = list(kinds)
    if exclude:
        chosen["exclude"] = list(exclude)
    if postgresql:
        rows = connection.execute(take, chosen | lease).all()
    else:
        taken = [tuple(pair) for pair in connection.execute(take, chosen)]
        if not taken:
            return []
        attempts = [{"job_id": id_, "token": token, "owner": owner} for id_, token in taken]
        connection.execute(_HOLD, [attempt | lease for attempt in attempts])
        record(connection, "claimed", *attempts)
        rows = connection.execute(_TAKEN, {"ids": [id_ for id_, _ in taken]}).all()
    return [
        Claim(
            job_id=row.id,
            token=row.token,
            owner=owner,
            identity=row.identity,
            kind=row.kind,
            name=row.name,
            spec=row.spec,
            resources=row.resources,
            inputs=row.inputs or {},
            previous=tuple(folder for _, folder in sorted(_by_token(row.earlier), reverse=True)),
        )
        for row in sorted(rows, key=lambda row: (-row.critical_s, row.id))
    ]


def _by_token(folders: dict[str, str] | None) -> Iterator[tuple[int, str]]:
    return ((int(token), folder) for token, folder in (folders or {}).items())


# Statements are made once: making one takes longer than running it.
_LEASE = {"claimed_at": now_s(), "lease_until": now_s() + bindparam("lease_s", type_=Double)}


_HOLD = insert(Attempt).values(_LEASE)


@cache
def _taking(postgresql: bool, of_kinds: bool, but_some: bool) -> Executable:
    """Takes `at_most` jobs; on PostgreSQL it writes attempts and events too, and tells all of them.

    One statement is one way to the server and back, where a job at a time used to take seven. State
    and limit stand in its text: a plan made once for all values could use neither the index of
    ready jobs nor the knowledge that they are few.
    """
    wanted_by_active_sweep = exists().where(
        SweepJob.job_id == Job.id, SweepJob.sweep_id == Sweep.id, Sweep.state == "active"
    )
    candidates = (
        select(Job.id)
        .where(Job.state == bindparam(None, State.READY, Text, literal_execute=True))
        .where(or_(Job.retry_at.is_(None), Job.retry_at <= now_s()))
        .where(wanted_by_active_sweep)
        # every priority is 0, but the index of ready jobs begins with it
        .order_by(Job.priority.desc(), Job.critical_s.desc(), Job.id)
        .limit(bindparam("at_most", type_=Integer, literal_execute=True))
        .with_for_update(skip_locked=True, of=Job)
    )
    if of_kinds:
        candidates = candidates.where(Job.kind.in_(bindparam("kinds", expanding=True)))
    if but_some:
        candidates = candidates.where(Job.id.not_in(bindparam("exclude", expanding=True)))
    # materialised: inlined, the sub-query may run more than once and take more than the limit
    picked = candidates.cte("picked").prefix_with("MATERIALIZED")
    take = (
        update(Job)
        .where(Job.id.in_(select(picked.c.id)))
        .values(state=State.RUNNING, token=Job.token + 1, retry_at=None)
    )
    if not postgresql:
        return take.returning(Job.id, Job.token)
    taken = take.returning(*_JOB).cte("taken")
    holder = bindparam("holder", type_=Text)
    attempts = select(taken.c.id, taken.c.token, holder, *_LEASE.values())
    columns = ["job_id", "token", "owner"]
    held = insert(Attempt).from_select([*columns, *_LEASE], attempts).cte("held")
    events = select(
        *(now_s(), literal("claimed", Text), taken.c.id, taken.c.token, holder, literal({}, JSON))
    )
    told = insert(Event).from_select(["at", "kind", *columns, "detail"], events).cte("told")
    return _told_of(taken.c, "json_object_agg").select_from(taken).add_cte(held, told)


_JOB = (Job.id, Job.identity, Job.kind, Job.name, Job.token, Job.critical_s)


def _told_of(job: Any, by_key: str) -> Select[Any]:
    """What a claim tells of jobs, given their columns and the database's name of json_object."""
    gather = getattr(func, by_key)
    inputs = (
        select(gather(Edge.role, Result.folder, type_=JSON))
        .join(Result, Result.job_id == Edge.parent_id)
        .where(Edge.child_id == job.id)
    )
    earlier = select(gather(cast(Attempt.token, Text), Attempt.folder, type_=JSON)).where(
        Attempt.job_id == job.id, Attempt.token < job.token, Attempt.folder.is_not(None)
    )
    columns = (job[column.key] for column in _JOB)
    return select(
        *(*columns, Definition.spec, Definition.resources),
        inputs.scalar_subquery().label("inputs"),
        earlier.scalar_subquery().label("earlier"),
    ).join(Definition, Definition.job_id == job.id)


_TAKEN = _told_of(Job.__table__.c, "json_group_object").where(
    Job.id.in_(bindparam("ids", expanding=True))
)


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
