"""The first tables, and the triggers that guard them."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"

down_revision = None

TYPES: dict[str, Any] = {
    "id": sa.BigInteger().with_variant(sa.Integer, "sqlite"),
    "integer": sa.Integer(),
    "double": sa.Double(),
    "text": sa.Text(),
    "json": sa.JSON(),
    "bytes": sa.LargeBinary(),
}

# what must never change once it is written
APPEND_ONLY = ("definition", "event", "query_set", "result", "score")

LEGAL = (
    "'ready>running', 'running>done', 'waiting>ready', 'running>ready', 'running>failed',"
    " 'waiting>skipped', 'waiting>cancelled', 'ready>cancelled', 'running>cancelled',"
    " 'failed>waiting', 'failed>ready', 'skipped>waiting', 'skipped>ready', 'cancelled>waiting',"
    " 'cancelled>ready'"
)

ILLEGAL = (
    f"(OLD.state <> NEW.state AND OLD.state || '>' || NEW.state NOT IN ({LEGAL}))"  # noqa: S608
    " OR NEW.token < OLD.token OR NEW.identity <> OLD.identity"
    " OR (NEW.state = 'done' AND NOT EXISTS (SELECT 1 FROM result WHERE result.job_id = NEW.id))"
    " OR (NEW.state <> 'running' AND EXISTS"
    " (SELECT 1 FROM attempt WHERE attempt.job_id = NEW.id AND attempt.outcome IS NULL))"
)


def upgrade() -> None:
    _table(
        "sweep",
        "id id, name text, grid text, state text, created_at double",
        unique="name",
        checks={"state": "state IN ('active', 'paused', 'cancelled')"},
    )
    _table(
        "job",
        "id id, identity text, kind text, name text, state text, missing_parents integer,"
        " priority integer, critical_s double, token integer, forgiven_token integer,"
        " retry_at double null, failure text null, reason text null, created_at double,"
        " ended_at double null",
        unique="identity",
        checks={
            "state": "state IN"
            " ('waiting', 'ready', 'running', 'done', 'failed', 'skipped', 'cancelled')",
            "parents": "missing_parents >= 0 AND (state <> 'waiting' OR missing_parents > 0)"
            " AND (state NOT IN ('ready', 'running', 'done') OR missing_parents = 0)",
            "failure": "(state = 'failed') = (failure IS NOT NULL)",
            "identity": "length(identity) = 64",
        },
    )
    claimed_first = [sa.text("priority DESC"), sa.text("critical_s DESC"), "id"]
    _index("job_claim_ix", "job", claimed_first, where="state = 'ready'")
    _index("job_failed_ix", "job", ["ended_at"], where="state = 'failed'")
    op.create_index("job_name_ix", "job", ["name"])
    _table(
        "definition",
        "job_id id, spec json, resources json, cost_s double",
        key="job_id",
        references={"job_id": "job.id"},
    )
    _table(
        "edge",
        "child_id id, role text, parent_id id",
        key="child_id role",
        references={"child_id": "job.id", "parent_id": "job.id"},
    )
    op.create_index("edge_parent_ix", "edge", ["parent_id"])
    _table(
        "sweep_job",
        "sweep_id id, job_id id, labels json",
        key="sweep_id job_id",
        references={"sweep_id": "sweep.id", "job_id": "job.id"},
    )
    op.create_index("sweep_job_job_ix", "sweep_job", ["job_id"])
    _table(
        "attempt",
        "job_id id, token integer, owner text, actor text null, node text null, folder text null,"
        " log text null, claimed_at double, started_at double null, lease_until double null,"
        " progress json null, ended_at double null, outcome text null, failure text null,"
        " reason text null",
        key="job_id token",
        references={"job_id": "job.id"},
        checks={
            "outcome": "outcome IN ('done', 'failed', 'expired', 'released', 'cancelled')",
            "ended": "(outcome IS NULL) = (ended_at IS NULL)"
            " AND (outcome IS NULL) = (lease_until IS NOT NULL)",
        },
    )
    _index("attempt_live_ix", "attempt", ["job_id"], where="outcome IS NULL", unique=True)
    _index("attempt_done_ix", "attempt", ["ended_at"], where="outcome = 'done'")
    _table(
        "result",
        "job_id id, token integer, folder text, manifest_sha256 text, summary json,"
        " provenance json, accepted_at double",
        key="job_id",
        references={"job_id token": "attempt.job_id attempt.token"},
    )
    _table("query_set", "id id, digest text, name text, query_ids json", unique="digest")
    _table(
        "score",
        "job_id id, measure text, query_set_id id, packed bytes, mean double",
        key="job_id measure",
        references={"job_id": "result.job_id", "query_set_id": "query_set.id"},
    )
    _table(
        "controller",
        "owner text, host text, pid integer, dashboard_url text null, started_at double,"
        " heartbeat_at double",
        key="owner",
    )
    _table(
        "event",
        "id id, at double, kind text, sweep_id id null, job_id id null, token integer null,"
        " owner text null, detail json",
        references={"sweep_id": "sweep.id", "job_id": "job.id"},
        sqlite_autoincrement=True,
    )
    op.create_index("event_job_ix", "event", ["job_id"])
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgresql()


def _table(
    name: str,
    columns: str,
    *,
    key: str = "id",
    unique: str = "",
    references: Mapping[str, str] = {},
    checks: Mapping[str, str] = {},
    **options: Any,
) -> None:
    op.create_table(
        name,
        *(_column(*column.split()) for column in columns.split(", ")),
        sa.PrimaryKeyConstraint(*key.split(), name=f"{name}_pk"),
        *([sa.UniqueConstraint(unique, name=f"{name}_{unique}_uq")] if unique else []),
        *(
            sa.ForeignKeyConstraint(
                own.split(), other.split(), name=f"{name}_{own.replace(' ', '_')}_fk"
            )
            for own, other in references.items()
        ),
        *(
            sa.CheckConstraint(condition, name=f"{name}_{check}_ck")
            for check, condition in checks.items()
        ),
        **options,
    )


def _column(name: str, kind: str, null: str = "") -> sa.Column:
    return sa.Column(name, TYPES[kind], nullable=bool(null))


def _index(name: str, table: str, columns: list, where: str, unique: bool = False) -> None:
    conditions: Any = dict.fromkeys(("sqlite_where", "postgresql_where"), sa.text(where))
    op.create_index(name, table, columns, unique=unique, **conditions)


def _guard_sqlite() -> None:
    op.execute(
        f"CREATE TRIGGER job_moves BEFORE UPDATE ON job WHEN {ILLEGAL}"
        " BEGIN SELECT RAISE(ABORT, 'illegal move of a job'); END"
    )
    for table in APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )


def _guard_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION xsweep_refuse() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN RAISE integrity_constraint_violation USING MESSAGE = TG_ARGV[0]; END $$"
    )
    # a WHEN clause of PostgreSQL holds no sub-query, so the condition goes into the function
    op.execute(
        "CREATE FUNCTION xsweep_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF {ILLEGAL} THEN RAISE integrity_constraint_violation"
        " USING MESSAGE = 'illegal move of a job'; END IF; RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER job_moves BEFORE UPDATE ON job FOR EACH ROW EXECUTE FUNCTION xsweep_move()"
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION xsweep_refuse('{table} is append-only')"
        )
