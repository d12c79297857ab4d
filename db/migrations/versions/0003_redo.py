"""A result may be retired, once the history says so, and its job computed again."""

from alembic import op

revision = "0003"

down_revision = "0002"

LEGAL = (
    "'ready>running', 'running>done', 'waiting>ready', 'running>ready', 'running>failed',"
    " 'waiting>skipped', 'waiting>cancelled', 'ready>cancelled', 'running>cancelled',"
    " 'failed>waiting', 'failed>ready', 'skipped>waiting', 'skipped>ready', 'cancelled>waiting',"
    " 'cancelled>ready', 'ready>skipped', 'done>ready', 'ready>waiting', 'running>waiting'"
)

ILLEGAL = (
    f"(OLD.state <> NEW.state AND OLD.state || '>' || NEW.state NOT IN ({LEGAL}))"  # noqa: S608
    " OR NEW.token < OLD.token OR NEW.identity <> OLD.identity OR NEW.kind <> OLD.kind"
    " OR (NEW.state = 'done' AND NOT EXISTS (SELECT 1 FROM result WHERE result.job_id = NEW.id))"
    " OR (OLD.state = 'done' AND NEW.state <> 'done'"
    " AND EXISTS (SELECT 1 FROM result WHERE result.job_id = NEW.id))"
    " OR (NEW.state <> 'running' AND EXISTS"
    " (SELECT 1 FROM attempt WHERE attempt.job_id = NEW.id AND attempt.outcome IS NULL))"
)

RETIRED = (
    "EXISTS (SELECT 1 FROM event JOIN result ON result.job_id = event.job_id"
    " AND result.token = event.token WHERE event.kind = 'redone' AND event.job_id = OLD.job_id)"
)


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgresql()


def _guard_sqlite() -> None:
    op.execute("DROP TRIGGER job_moves")
    op.execute(
        f"CREATE TRIGGER job_moves BEFORE UPDATE ON job WHEN {ILLEGAL}"
        " BEGIN SELECT RAISE(ABORT, 'illegal move of a job'); END"
    )
    for table in ("result", "score"):
        op.execute(f"DROP TRIGGER {table}_no_delete")
        op.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} WHEN NOT {RETIRED}"
            f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )


def _guard_postgresql() -> None:
    op.execute(
        "CREATE OR REPLACE FUNCTION xsweep_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF {ILLEGAL} THEN RAISE integrity_constraint_violation"
        " USING MESSAGE = 'illegal move of a job'; END IF; RETURN NEW; END $$"
    )
    op.execute(
        "CREATE FUNCTION xsweep_retire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NOT {RETIRED} THEN RAISE integrity_constraint_violation"
        " USING MESSAGE = TG_TABLE_NAME || ' is append-only'; END IF; RETURN OLD; END $$"
    )
    for table in ("result", "score"):
        op.execute(f"DROP TRIGGER {table}_append_only ON {table}")
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR TRUNCATE ON {table}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION xsweep_refuse('{table} is append-only')"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION xsweep_retire()"
        )
