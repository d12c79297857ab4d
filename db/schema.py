"""Tables, states and retry budgets of jobs, and the database's clock.

Constraints here, and triggers in the migrations, forbid what must never happen. Times are seconds
since 1970 by the database's clock. A job's row holds the columns that change and stays narrow,
because every change rewrites it; the constant ones are in `Definition`.

The conditions of partial indexes also hold on PostgreSQL, see the migrations; naming them here for
it would make SQLAlchemy load its dialect, a tenth of the time of `xsweep status` on SQLite.
"""

import random
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.expression import FunctionElement


class now_s(FunctionElement[float]):
    """Seconds since 1970 by the database's clock, at the start of the statement.

    The start errs on the safe side: a lease granted after a wait for a lock ends early rather than
    late, and an expiry is noticed late rather than early.
    """

    type = sa.Double()
    inherit_cache = True
    name = "now_s"


@compiles(now_s, "sqlite")
def _sqlite(element: now_s, compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now_s, "postgresql")
def _postgresql(element: now_s, compiler: Any, **_: Any) -> str:
    return "CAST(extract(epoch FROM statement_timestamp()) AS double precision)"


class State(StrEnum):
    """The state of a job; done, failed, skipped and cancelled are final until a user reopens it."""

    WAITING = "waiting"  # for parents whose results are missing
    READY = "ready"  # may be claimed (from `retry_at` on)
    RUNNING = "running"  # held by the one live attempt
    DONE = "done"  # has an accepted result
    FAILED = "failed"  # the retries of its failure class are used up
    SKIPPED = "skipped"  # an ancestor failed or was cancelled, or its column of the grid is stopped
    CANCELLED = "cancelled"  # by a user


OPEN = (State.WAITING, State.READY, State.RUNNING)
BROKEN = (State.FAILED, State.SKIPPED, State.CANCELLED)

RETRIES: dict[str, int | None] = {
    "CONFIG": 0,
    "DATA": 0,
    "NAN": 0,
    "CANCELLED": 0,
    "HANG": 1,
    "UNKNOWN": 2,
    "OOM_HOST": 2,
    "OOM_GPU": 4,
    "INFRA": 5,
    "NODE": 8,
    "PREEMPTED": None,
    "NODE_FULL": None,
}
"""Retries of a job per failure class; None is unlimited.

Failures that a second try cannot change have none. OOM_GPU has one for each halving of the
micro-batch from 16,384 tokens to 1,024. NODE_FULL is memory that others took. NODE also counts
expired leases: most are not the job's fault, but one that takes its machine down each time must
fail in the end.
"""

BACKOFF_S = {"OOM_GPU": 0.0, "PREEMPTED": 0.0, "NODE": 0.0}
"""Waits before the first retry where they differ from `FIRST_WAIT_S`: new conditions, no wait."""

FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 600.0


def backoff_s(failure: str, failures: int) -> float:
    """Seconds until the next try after the n-th failure (n >= 1) of one class.

    Doubles from `FIRST_WAIT_S` to `LONGEST_WAIT_S`; jitter between half and the whole keeps jobs
    that failed together from starting together: the third INFRA waits 10 to 20 s.
    """
    # Some classes have no last failure, and a float has a largest power of 2.
    doubled = 2.0 ** min(failures - 1, 100)
    wait = min(BACKOFF_S.get(failure, FIRST_WAIT_S) * doubled, LONGEST_WAIT_S)
    return wait * random.uniform(0.5, 1.0)  # noqa: S311  (spreads load, guards nothing)


REVISION = "0005"
"""The migration that makes the tables below; revisions are consecutive numbers."""

VERSION_TABLE = "xsweep_schema"

# SQLite's rowid is an INTEGER and nothing else; PostgreSQL's ids should not end at 2**31
Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


class Base(DeclarativeBase):
    """Text for every string (a length limit guards nothing here), 8-byte floats for every time."""

    metadata = sa.MetaData(
        naming_convention={
            "pk": "%(table_name)s_pk",
            "uq": "%(table_name)s_%(column_0_N_name)s_uq",
            "ck": "%(table_name)s_%(constraint_name)s_ck",
            "fk": "%(table_name)s_%(column_0_N_name)s_fk",
        }
    )
    # JSON as text: PostgreSQL's jsonb would turn 1e22 into an integer and lose -0.0
    type_annotation_map = {  # noqa: RUF012
        str: sa.Text,
        float: sa.Double,
        dict[str, Any]: sa.JSON,
        list[str]: sa.JSON,
    }


class Sweep(Base):
    """A submitted grid; submitting its name again extends it."""

    __tablename__ = "sweep"
    __table_args__ = (
        sa.CheckConstraint("state IN ('active', 'paused', 'cancelled')", name="state"),
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    grid: Mapped[str]
    state: Mapped[str]
    created_at: Mapped[float]


class Job(Base):
    """A unit of work, shared by every sweep that contains its identity."""

    __tablename__ = "job"
    __table_args__ = (
        sa.CheckConstraint(f"state IN ({', '.join(repr(s.value) for s in State)})", name="state"),
        sa.CheckConstraint(
            "missing_parents >= 0 AND (state <> 'waiting' OR missing_parents > 0)"
            " AND (state NOT IN ('ready', 'running', 'done') OR missing_parents = 0)",
            name="parents",
        ),
        sa.CheckConstraint("(state = 'failed') = (failure IS NOT NULL)", name="failure"),
        sa.CheckConstraint("length(identity) = 64", name="identity"),
        sa.Index(
            "job_claim_ix",
            sa.text("priority DESC"),
            sa.text("critical_s DESC"),
            "id",
            sqlite_where=sa.text("state = 'ready'"),
        ),
        sa.Index("job_failed_ix", "ended_at", sqlite_where=sa.text("state = 'failed'")),
        sa.Index("job_name_ix", "name"),
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    """Parents have smaller ids than their children: locking by ascending id cannot deadlock."""
    identity: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    name: Mapped[str]
    state: Mapped[str]
    missing_parents: Mapped[int]
    """Number of parents that are not done. Stored, since two parents that finish at the same time
    do not see each other's results, but do queue for this row."""
    priority: Mapped[int]
    """Larger ones are claimed first, see `xsweep.db.submit`; 0 if an older version added it."""
    critical_s: Mapped[float]
    """Expected seconds of the longest chain of jobs that starts with this one."""
    token: Mapped[int]
    """Number of the latest attempt, the fencing token; it only grows."""
    forgiven_token: Mapped[int]
    """Failures of attempts up to this one no longer count: a user asked for a retry."""
    retry_at: Mapped[float | None]
    failure: Mapped[str | None]
    reason: Mapped[str | None]
    created_at: Mapped[float]
    ended_at: Mapped[float | None]


class Definition(Base):
    """A job's spec and resources; never change."""

    __tablename__ = "definition"

    job_id: Mapped[int] = mapped_column(Id, sa.ForeignKey("job.id"), primary_key=True)
    spec: Mapped[dict[str, Any]]
    resources: Mapped[dict[str, Any]]
    cost_s: Mapped[float]


class Edge(Base):
    """The child needs the parent's result, in a role."""

    __tablename__ = "edge"
    __table_args__ = (sa.Index("edge_parent_ix", "parent_id"),)

    child_id: Mapped[int] = mapped_column(Id, sa.ForeignKey("job.id"), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(Id, sa.ForeignKey("job.id"))


class SweepJob(Base):
    """A job's place in a sweep; the labels are what that sweep's report calls it."""

    __tablename__ = "sweep_job"
    __table_args__ = (sa.Index("sweep_job_job_ix", "job_id"),)

    sweep_id: Mapped[int] = mapped_column(Id, sa.ForeignKey("sweep.id"), primary_key=True)
    job_id: Mapped[int] = mapped_column(Id, sa.ForeignKey("job.id"), primary_key=True)
    labels: Mapped[dict[str, Any]]


class Tally(Base):
    """Number of a sweep's jobs in a state: the sum over rows, which triggers append.

    Appended and never updated in place, since all changes of jobs would wait for the one row;
    `xsweep.db.status.fold_tally` sums them up from time to time.
    """

    __tablename__ = "tally"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    sweep_id: Mapped[int] = mapped_column(Id)
    kind: Mapped[str]
    state: Mapped[str]
    jobs: Mapped[int]
    """Negative where jobs have left the state."""
    cost_s: Mapped[float]
    """Expected seconds of these jobs, as submitted."""


class Attempt(Base):
    """One try at a job, live and leased until it ends in an outcome."""

    __tablename__ = "attempt"
    __table_args__ = (
        sa.CheckConstraint(
            "outcome IN ('done', 'failed', 'expired', 'released', 'cancelled')", name="outcome"
        ),
        sa.CheckConstraint(
            "(outcome IS NULL) = (ended_at IS NULL)"
            " AND (outcome IS NULL) = (lease_until IS NOT NULL)",
            name="ended",
        ),
        sa.Index("attempt_live_ix", "job_id", unique=True, sqlite_where=sa.text("outcome IS NULL")),
        sa.Index("attempt_done_ix", "ended_at", sqlite_where=sa.text("outcome = 'done'")),
    )

    job_id: Mapped[int] = mapped_column(Id, sa.ForeignKey("job.id"), primary_key=True)
    token: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    actor: Mapped[str | None]
    node: Mapped[str | None]
    folder: Mapped[str | None]
    log: Mapped[str | None]
    claimed_at: Mapped[float]
    started_at: Mapped[float | None]
    lease_until: Mapped[float | None]
    progress: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    ended_at: Mapped[float | None]
    outcome: Mapped[str | None]
    failure: Mapped[str | None]
    reason: Mapped[str | None]


class Result(Base):
    """The accepted result of a job: one, until `xsweep.db.control.redo` retires it."""

    __tablename__ = "result"
    __table_args__ = (
        sa.ForeignKeyConstraint(["job_id", "token"], ["attempt.job_id", "attempt.token"]),
    )

    job_id: Mapped[int] = mapped_column(Id, primary_key=True)
    token: Mapped[int]
    folder: Mapped[str]
    manifest_sha256: Mapped[str]
    summary: Mapped[dict[str, Any]]
    provenance: Mapped[dict[str, Any]]
    accepted_at: Mapped[float]


class QuerySet(Base):
    """The query ids of packed scores, in order; stored once per distinct list."""

    __tablename__ = "query_set"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    query_ids: Mapped[list[str]]


class Score(Base):
    """One measure of one accepted evaluation: a little-endian float64 per query of the set."""

    __tablename__ = "score"

    job_id: Mapped[int] = mapped_column(Id, sa.ForeignKey("result.job_id"), primary_key=True)
    measure: Mapped[str] = mapped_column(primary_key=True)
    query_set_id: Mapped[int] = mapped_column(Id, sa.ForeignKey("query_set.id"))
    packed: Mapped[bytes] = mapped_column(sa.LargeBinary)
    mean: Mapped[float]


class Controller(Base):
    """A process that claims jobs; `owner` is new at each start."""

    __tablename__ = "controller"

    owner: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    dashboard_url: Mapped[str | None]
    started_at: Mapped[float]
    heartbeat_at: Mapped[float]


class Event(Base):
    """A change or decision, in order; a trigger refuses updates and deletions."""

    __tablename__ = "event"
    __table_args__ = (sa.Index("event_job_ix", "job_id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    at: Mapped[float]
    kind: Mapped[str]
    sweep_id: Mapped[int | None] = mapped_column(Id, sa.ForeignKey("sweep.id"))
    job_id: Mapped[int | None] = mapped_column(Id, sa.ForeignKey("job.id"))
    token: Mapped[int | None]
    owner: Mapped[str | None]
    detail: Mapped[dict[str, Any]]
