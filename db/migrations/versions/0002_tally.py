"""Kept counts of each sweep's jobs; a ready job may be skipped, when its column is stopped."""

import sqlalchemy as sa
from alembic import op

revision = "0002"

down_revision = "0001"

LEGAL = (
    "'ready>running', 'running>done', 'waiting>ready', 'running>ready', 'running>failed',"
    " 'waiting>skipped', 'waiting>cancelled', 'ready>cancelled', 'running>cancelled',"
    " 'failed>waiting', 'failed>ready', 'skipped>waiting', 'skipped>ready', 'cancelled>waiting',"
    " 'cancelled>ready', 'ready>skipped'"
)

ILLEGAL = (
    f"(OLD.state <> NEW.state AND OLD.state || '>' || NEW.state NOT IN ({LEGAL}))"  # noqa: S608
    " OR NEW.token < OLD.token OR NEW.identity <> OLD.identity OR NEW.kind <> OLD.kind"
    " OR (NEW.state = 'done' AND NOT EXISTS (SELECT 1 FROM result WHERE result.job_id = NEW.id))"
    " OR (NEW.state <> 'running' AND EXISTS"
    " (SELECT 1 FROM attempt WHERE attempt.job_id = NEW.id AND attempt.outcome IS NULL))"
)

FILL = (
    "INSERT INTO tally (sweep_id, kind, state, jobs, cost_s)"
    " SELECT sweep_job.sweep_id, job.kind, job.state, count(*), sum(definition.cost_s)"
    " FROM sweep_job JOIN job ON job.id = sweep_job.job_id"
    " JOIN definition ON definition.job_id = job.id GROUP BY 1, 2, 3"
)

COUNT_MOVE = (
    "INSERT INTO tally (sweep_id, kind, state, jobs, cost_s)"
    " SELECT sweep_job.sweep_id, NEW.kind, change.state, change.jobs,"
    " change.jobs * definition.cost_s"
    " FROM sweep_job JOIN definition ON definition.job_id = sweep_job.job_id"
    " CROSS JOIN (SELECT OLD.state AS state, -1 AS jobs UNION ALL SELECT NEW.state, 1) AS change"
    " WHERE sweep_job.job_id = NEW.id"
)


def upgrade() -> None:
    id_type = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "tally",
        sa.Column("id", id_type, nullable=False),
        sa.Column("sweep_id", id_type, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("jobs", sa.Integer, nullable=False),
        sa.Column("cost_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="tally_pk"),
    )
    op.execute(FILL)
    if op.get_bind().dialect.name == "sqlite":
        _count_sqlite()
    else:
        _count_postgresql()


def _count_sqlite() -> None:
    op.execute("DROP TRIGGER job_moves")
    op.execute(
        f"CREATE TRIGGER job_moves BEFORE UPDATE ON job WHEN {ILLEGAL}"
        " BEGIN SELECT RAISE(ABORT, 'illegal move of a job'); END"
    )
    op.execute(
        "CREATE TRIGGER job_counted AFTER UPDATE OF state ON job WHEN OLD.state <> NEW.state"
        f" BEGIN {COUNT_MOVE}; END"
    )
    op.execute(
        "CREATE TRIGGER sweep_job_counted AFTER INSERT ON sweep_job BEGIN"
        " INSERT INTO tally (sweep_id, kind, state, jobs, cost_s)"
        " SELECT NEW.sweep_id, job.kind, job.state, 1, definition.cost_s"
        " FROM job JOIN definition ON definition.job_id = job.id WHERE job.id = NEW.job_id; END"
    )


def _count_postgresql() -> None:
    op.execute(
        "CREATE OR REPLACE FUNCTION xsweep_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF {ILLEGAL} THEN RAISE integrity_constraint_violation"
        " USING MESSAGE = 'illegal move of a job'; END IF; RETURN NEW; END $$"
    )
    op.execute(
        "CREATE FUNCTION xsweep_count_move() RETURNS trigger LANGUAGE plpgsql AS $$"
        f" BEGIN {COUNT_MOVE}; RETURN NULL; END $$"
    )
    # for each row: planned once for few rows, a statement's trigger would join by scanning tables
    op.execute(
        "CREATE TRIGGER job_counted AFTER UPDATE OF state ON job FOR EACH ROW"
        " WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION xsweep_count_move()"
    )
    op.execute(
        "CREATE FUNCTION xsweep_count_members() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" {FILL.replace('FROM sweep_job', 'FROM added AS sweep_job')}; RETURN NULL; END $$"
    )
    op.execute(
        "CREATE TRIGGER sweep_job_counted AFTER INSERT ON sweep_job REFERENCING NEW TABLE AS added"
        " FOR EACH STATEMENT EXECUTE FUNCTION xsweep_count_members()"
    )
