"""The first tables, and the triggers that guard them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"


down_revision = None


Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


# what must never change once it is written
APPEND_ONLY = ("definition", "event", "query_set", "result", "score")


MOVES = (
    "ready>running",
    "running>done",
    "waiting>ready",
    "running>ready",
    "running>failed",
    "waiting>skipped",
    "waiting>cancelled",
    "ready>cancelled",
    "running>cancelled",
    "failed>waiting",
    "failed>ready",
    "skipped>waiting",
    "skipped>ready",
    "cancelled>waiting",
    "cancelled>ready",
)


LEGAL = ", ".join(f"'{move}'" for move in MOVES)


ILLEGAL = (
    f"(OLD.state <> NEW.state AND OLD.state || '>' || NEW.state NOT IN ({LEGAL}))"  # noqa: S608
    " OR NEW.token < OLD.token OR NEW.identity <> OLD.identity"
    " OR (NEW.state = 'done' AND NOT EXISTS (SELECT 1 FROM result WHERE result.job_id = NEW.id))"
    " OR (NEW.state <> 'running' AND EXISTS"
    " (SELECT 1 FROM attempt WHERE attempt.job_id = NEW.id AND attempt.outcome IS NULL))"
)


def upgrade() -> None:
    op.create_table(
        "sweep",
        sa.Column("id", Id, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("grid", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="sweep_pk"),
        sa.UniqueConstraint("name", name="sweep_name_uq"),
        sa.CheckConstraint("state IN ('active', 'paused', 'cancelled')", name="sweep_state_ck"),
    )
    op.create_table(
        "job",
        sa.Column("id", Id, nullable=False),
        sa.Column("identity", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("missing_parents", sa.Integer, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("critical_s", sa.Double, nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("forgiven_token", sa.Integer, nullable=False),
        sa.Column("retry_at", sa.Double),
        sa.Column("failure", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.PrimaryKeyConstraint("id", name="job_pk"),
        sa.UniqueConstraint("identity", name="job_identity_uq"),
        sa.CheckConstraint(
            "state IN ('waiting', 'ready', 'running', 'done', 'failed', 'skipped', 'cancelled')",
            name="job_state_ck",
        ),
        sa.CheckConstraint(
            "missing_parents >= 0 AND (state <> 'waiting' OR missing_parents > 0)"
            " AND (state NOT IN ('ready', 'running', 'done') OR missing_parents = 0)",
            name="job_parents_ck",
        ),
        sa.CheckConstraint("(state = 'failed') = (failure IS NOT NULL)", name="job_failure_ck"),
        sa.CheckConstraint("length(identity) = 64", name="job_identity_ck"),
    )
    _index(
        "job_claim_ix",
        "job",
        [sa.text("priority DESC"), sa.text("critical_s DESC"), "id"],
        where="state = 'ready'",
    )
    _index("job_failed_ix", "job", ["ended_at"], where="state = 'failed'")
    op.create_index("job_name_ix", "job", ["name"])
    op.create_table(
        "definition",
        sa.Column("job_id", Id, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("resources", sa.JSON, nullable=False),
        sa.Column("cost_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="definition_pk"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="definition_job_id_fk"),
    )
    op.create_table(
        "edge",
        sa.Column("child_id", Id, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("parent_id", Id, nullable=False),
        sa.PrimaryKeyConstraint("child_id", "role", name="edge_pk"),
        sa.ForeignKeyConstraint(["child_id"], ["job.id"], name="edge_child_id_fk"),
        sa.ForeignKeyConstraint(["parent_id"], ["job.id"], name="edge_parent_id_fk"),
    )
    op.create_index("edge_parent_ix", "edge", ["parent_id"])
    op.create_table(
        "sweep_job",
        sa.Column("sweep_id", Id, nullable=False),
        sa.Column("job_id", Id, nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("sweep_id", "job_id", name="sweep_job_pk"),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweep.id"], name="sweep_job_sweep_id_fk"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="sweep_job_job_id_fk"),
    )
    op.create_index("sweep_job_job_ix", "sweep_job", ["job_id"])
    op.create_table(
        "attempt",
        sa.Column("job_id", Id, nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("actor", sa.Text),
        sa.Column("node", sa.Text),
        sa.Column("folder", sa.Text),
        sa.Column("log", sa.Text),
        sa.Column("claimed_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("lease_until", sa.Double),
        sa.Column("progress", sa.JSON),
        sa.Column("ended_at", sa.Double),
        sa.Column("outcome", sa.Text),
        sa.Column("failure", sa.Text),
        sa.Column("reason", sa.Text),
        sa.PrimaryKeyConstraint("job_id", "token", name="attempt_pk"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="attempt_job_id_fk"),
        sa.CheckConstraint(
            "outcome IN ('done', 'failed', 'expired', 'released', 'cancelled')",
            name="attempt_outcome_ck",
        ),
        sa.CheckConstraint(
            "(outcome IS NULL) = (ended_at IS NULL)"
            " AND (outcome IS NULL) = (lease_until IS NOT NULL)",
            name="attempt_ended_ck",
        ),
    )
    _index("attempt_live_ix", "attempt", ["job_id"], where="outcome IS NULL", unique=True)
    _index("attempt_done_ix", "attempt", ["ended_at"], where="outcome = 'done'")
    op.create_table(
        "result",
        sa.Column("job_id", Id, nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("manifest_sha256", sa.Text, nullable=False),
        sa.Column("summary", sa.JSON, nullable=False),
        sa.Column("provenance", sa.JSON, nullable=False),
        sa.Column("accepted_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="result_pk"),
        sa.ForeignKeyConstraint(
            ["job_id", "token"], ["attempt.job_id", "attempt.token"], name="result_job_id_token_fk"
        ),
    )
    op.create_table(
        "query_set",
        sa.Column("id", Id, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("query_ids", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="query_set_pk"),
        sa.UniqueConstraint("digest", name="query_set_digest_uq"),
    )
    op.create_table(
        "score",
        sa.Column("job_id", Id, nullable=False),
        sa.Column("measure", sa.Text, nullable=False),
        sa.Column("query_set_id", Id, nullable=False),
        sa.Column("packed", sa.LargeBinary, nullable=False),
        sa.Column("mean", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "measure", name="score_pk"),
        sa.ForeignKeyConstraint(["job_id"], ["result.job_id"], name="score_job_id_fk"),
        sa.ForeignKeyConstraint(["query_set_id"], ["query_set.id"], name="score_query_set_id_fk"),
    )
    op.create_table(
        "controller",
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("dashboard_url", sa.Text),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("heartbeat_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("owner", name="controller_pk"),
    )
    op.create_table(
        "event",
        sa.Column("id", Id, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("sweep_id", Id),
        sa.Column("job_id", Id),
        sa.Column("token", sa.Integer),
        sa.Column("owner", sa.Text),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="event_pk"),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweep.id"], name="event_sweep_id_fk"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="event_job_id_fk"),
        sqlite_autoincrement=True,
    )
    op.create_index("event_job_ix", "event", ["job_id"])
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgresql()


def _index(name: str, table: str, columns: list, where: str, unique: bool = False) -> None:
    condition = sa.text(where)
    op.create_index(
        name,
        table,
        columns,
        unique=unique,
        sqlite_where=condition,
        postgresql_where=condition,
    )


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
