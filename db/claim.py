"""Claim ready jobs, record where their attempts run, and renew the leases that hold them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from xsweep.db.dependencies import IN_ACTIVE_SWEEP
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
    Tally,
    now_s,
)
from xsweep.db.transaction import pieces, transact

LAST_WAVES = 1.5
"""Trainings left per running job from which on trainings are claimed before evaluations, which then
fill the places of trainings that end early; 1 lengthens the study by 2.8%, see
docs/measurements.md."""

MAY_START = sa.or_(Job.retry_at.is_(None), Job.retry_at <= now_s())


class Lease(NamedTuple):
    """An owner's hold on a job under a fencing token; every write of an attempt presents it."""

    job_id: int
    token: int
    owner: str


class Place(NamedTuple):
    """The process, node, folder and log of an attempt."""

    actor: str
    node: str
    folder: str
    log: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job and the live attempt at it, which `owner` holds as long as its lease is renewed."""

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
    """Folders of earlier attempts, the newest first: checkpoints may be there."""
    actor: str | None = None
    """This and the next three are set once the attempt has started; see `Place`."""
    node: str | None = None
    folder: str | None = None
    log: str | None = None

    @property
    def lease(self) -> Lease:
        return Lease(self.job_id, self.token, self.owner)


def claim(
    engine: sa.Engine,
    *,
    owner: str,
    limit: int,
    lease_s: float,
    kinds: Sequence[str] | None = None,
    exclude: Collection[int] = (),
    running: int = 0,
) -> list[Claim]:
    """Take up to `limit` ready jobs by priority, then the longest chain behind them, then age.

    Trainings come first once at most `LAST_WAVES` of them are left for each of the owner's
    `running` jobs. Skips jobs whose sweeps are all paused and jobs whose `retry_at` is in the
    future. When the connection breaks after the commit, `owner` holds the jobs all the same: they
    appear in `running`, and their leases expire unless renewed.
    """
    lease = {"holder": owner, "lease_s": float(lease_s)}

    def work(connection: sa.Connection) -> list[Claim]:
        trains = running and (kinds is None or "train" in kinds)
        left = (connection.scalar(_TRAININGS_LEFT) or 0) if trains else 0
        last = 0 < left <= LAST_WAVES * running and attempt(connection, ["train"])
        return last or attempt(connection, kinds)

    def attempt(connection: sa.Connection, kinds: Sequence[str] | None) -> list[Claim]:
        parameters: dict[str, Any] = {"at_most": limit, "exclude": list(exclude)}
        if kinds is not None:
            parameters["kinds"] = list(kinds)
        postgresql = connection.dialect.name == "postgresql"
        take = _take(postgresql, kinds is not None)
        if postgresql:
            rows = connection.execute(take, parameters | lease).mappings().all()
        else:
            taken = connection.execute(take, parameters).all()
            if not taken:
                return []
            attempts = [{"job_id": id_, "token": token, "owner": owner} for id_, token in taken]
            connection.execute(_HOLD, [each | lease for each in attempts])
            record(connection, "claimed", *attempts)
            ids = {"ids": [id_ for id_, _ in taken]}
            rows = connection.execute(_TAKEN, ids).mappings().all()
        first = sorted(rows, key=lambda row: (-row["priority"], -row["critical_s"], row["job_id"]))
        return [_as_claim(row, owner=owner) for row in first]

    return transact(engine, work) if limit > 0 else []


def read_claims(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> list[Claim]:
    """The live attempts that meet the conditions, by job id."""
    started = (Attempt.owner, Attempt.actor, Attempt.node, Attempt.folder, Attempt.log)
    query = (
        _claim_columns(Job.__table__.c, connection.dialect.name == "postgresql")
        .add_columns(*started)
        .join(Attempt, sa.and_(Attempt.job_id == Job.id, Attempt.outcome.is_(None)))
        .where(*conditions)
        .order_by(Job.id)
    )
    rows = connection.execute(query).mappings()
    return [_as_claim(row, **{each.key: row[each.key] for each in started}) for row in rows]


# Statements are built once: building one takes longer than running it.
_LEASE = {"claimed_at": now_s(), "lease_until": now_s() + sa.bindparam("lease_s", type_=sa.Double)}
_HOLD = sa.insert(Attempt).values(_LEASE)
_TRAININGS_LEFT = (
    sa.select(sa.func.sum(Tally.jobs))
    .join_from(Tally, Sweep, Tally.sweep_id == Sweep.id)
    .where(Sweep.state == "active", Tally.kind == "train")
    .where(Tally.state.in_([State.WAITING, State.READY]))
)
_JOB = ("id", "identity", "kind", "name", "token", "priority", "critical_s")


@cache
def _take(postgresql: bool, of_kinds: bool) -> sa.Executable:
    """Take `at_most` jobs; on PostgreSQL also write attempts and events and return the claims.

    PostgreSQL needs one round trip this way instead of seven. State and limit are literals: a plan
    made once for all values could use neither the index of ready jobs nor the small limit.
    """
    candidates = (
        sa.select(Job.id)
        .where(Job.state == sa.bindparam(None, State.READY, sa.Text, literal_execute=True))
        .where(MAY_START, IN_ACTIVE_SWEEP)
        .where(Job.id.not_in(sa.bindparam("exclude", expanding=True)))
        .order_by(Job.priority.desc(), Job.critical_s.desc(), Job.id)
        .limit(sa.bindparam("at_most", type_=sa.Integer, literal_execute=True))
        .with_for_update(skip_locked=True, of=Job)
    )
    if of_kinds:
        candidates = candidates.where(Job.kind.in_(sa.bindparam("kinds", expanding=True)))
    # materialised: inlined, the sub-query may run more than once and take more than the limit
    picked = candidates.cte("picked").prefix_with("MATERIALIZED")
    take = (
        sa.update(Job)
        .where(Job.id.in_(sa.select(picked.c.id)))
        .values(state=State.RUNNING, token=Job.token + 1, retry_at=None)
    )
    if not postgresql:
        return take.returning(Job.id, Job.token)
    taken = take.returning(*(getattr(Job, name) for name in _JOB)).cte("taken")
    holder = sa.bindparam("holder", type_=sa.Text)
    columns = ["job_id", "token", "owner"]
    attempts = sa.select(taken.c.id, taken.c.token, holder, *_LEASE.values())
    held = sa.insert(Attempt).from_select([*columns, *_LEASE], attempts).cte("held")
    kind, detail = sa.literal("claimed", sa.Text), sa.literal({}, sa.JSON)
    events = sa.select(now_s(), kind, taken.c.id, taken.c.token, holder, detail)
    recorded = sa.insert(Event).from_select(["at", "kind", *columns, "detail"], events)
    found = _claim_columns(taken.c, postgresql).select_from(taken)
    return found.add_cte(held, recorded.cte("recorded"))


def _claim_columns(job: Any, postgresql: bool) -> sa.Select[Any]:
    """Select the columns of claims, given those of their jobs."""
    gather = sa.func.json_object_agg if postgresql else sa.func.json_group_object
    inputs = (
        sa.select(gather(Edge.role, Result.folder, type_=sa.JSON))
        .join(Result, Result.job_id == Edge.parent_id)
        .where(Edge.child_id == job.id)
    )
    before, later = Attempt.__table__.alias("before").c, Attempt.__table__.alias("later").c
    # a job that is redone starts from nothing
    redone = sa.exists().where(
        later.job_id == before.job_id, later.token >= before.token, later.outcome == "done"
    )
    earlier = sa.select(gather(sa.cast(before.token, sa.Text), before.folder, type_=sa.JSON)).where(
        before.job_id == job.id, before.token < job.token, before.folder.is_not(None), ~redone
    )
    return sa.select(
        *(job[name].label("job_id") if name == "id" else job[name] for name in _JOB),
        *(Definition.spec, Definition.resources),
        inputs.scalar_subquery().label("inputs"),
        earlier.scalar_subquery().label("earlier"),
    ).join(Definition, Definition.job_id == job.id)


_TAKEN = _claim_columns(Job.__table__.c, postgresql=False).where(
    Job.id.in_(sa.bindparam("ids", expanding=True))
)


def _as_claim(row: sa.RowMapping, **attempt: Any) -> Claim:
    same = ("job_id", "token", "identity", "kind", "name", "spec", "resources")
    folders = {int(token): folder for token, folder in (row["earlier"] or {}).items()}
    return Claim(
        **{name: row[name] for name in same},
        inputs=row["inputs"] or {},
        previous=tuple(folders[token] for token in sorted(folders, reverse=True)),
        **attempt,
    )


def mark_started(engine: sa.Engine, places: Mapping[Lease, Place]) -> set[Lease]:
    """Record where attempts run. Returns the leases that still hold: stop all other attempts."""

    def work(connection: sa.Connection) -> set[Lease]:
        held = []
        for lease, place in places.items():
            begun = sa.update(Attempt).where(live([lease]))
            row = begun.values(started_at=now_s(), **place._asdict())
            if connection.execute(row).rowcount:
                held.append(lease)
        events = ({**lease._asdict(), **places[lease]._asdict()} for lease in held)
        record(connection, "started", *events)
        return set(held)

    return transact(engine, work) if places else set()


def renew(
    engine: sa.Engine,
    leases: Collection[Lease],
    *,
    lease_s: float,
    progress: Mapping[Lease, dict[str, Any]] | None = None,
) -> set[Lease]:
    """Extend leases. Returns those that still hold: stop all other attempts.

    An expired lease that nobody took is held again. `progress` is stored with the attempt:
    {"done": 50, "total": 200, "loss": 0.3}.
    """

    def work(connection: sa.Connection) -> set[Lease]:
        held: set[Lease] = set()
        for piece in pieces(sorted(leases)):
            extended = sa.update(Attempt).where(live(piece)).values(lease_until=now_s() + lease_s)
            rows = connection.execute(extended.returning(*LEASE))
            held |= {Lease(*row) for row in rows}
        for lease in held & set(progress or ()):
            made = sa.update(Attempt).where(live([lease])).values(progress=(progress or {})[lease])
            connection.execute(made)
        return held

    return transact(engine, work) if leases else set()


LEASE = (Attempt.job_id, Attempt.token, Attempt.owner)


def live(leases: Iterable[Lease]) -> sa.ColumnElement[bool]:
    """The condition of every write of attempts: they have not ended, and these leases hold them."""
    return sa.and_(sa.tuple_(*LEASE).in_(list(leases)), Attempt.outcome.is_(None))
