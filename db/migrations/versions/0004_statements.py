"""PostgreSQL guards and counts the jobs of a statement together, for a third of the time."""

from alembic import op

revision = "0004"

down_revision = "0003"

LEGAL = (
    "'ready>running', 'running>done', 'waiting>ready', 'running>ready', 'running>failed',"
    " 'waiting>skipped', 'waiting>cancelled', 'ready>cancelled', 'running>cancelled',"
    " 'failed>waiting', 'failed>ready', 'skipped>waiting', 'skipped>ready', 'cancelled>waiting',"
    " 'cancelled>ready', 'ready>skipped', 'done>ready', 'ready>waiting', 'running>waiting'"
)

ILLEGAL = (
    f"OLD.state <> NEW.state AND OLD.state || '>' || NEW.state NOT IN ({LEGAL})"
    " OR NEW.token < OLD.token OR NEW.identity <> OLD.identity OR NEW.kind <> OLD.kind"
)

HELD = (
    "EXISTS (SELECT 1 FROM new_rows JOIN attempt ON attempt.job_id = new_rows.id"
    " WHERE attempt.outcome IS NULL AND new_rows.state <> 'running')"
)

# grouped by job before the joins: those whose state is the same cost no look-up
COUNT_MOVES = (
    "INSERT INTO tally (sweep_id, kind, state, jobs, cost_s)"
    " SELECT sweep_job.sweep_id, moved.kind, change.state, sum(change.jobs),"
    " sum(change.jobs * definition.cost_s)"
    " FROM (SELECT id, kind, max(before) AS before, max(after) AS after"
    " FROM (SELECT id, kind, state AS before, NULL AS after FROM old_rows"
    " UNION ALL SELECT id, kind, NULL, state FROM new_rows) AS both_rows"
    " GROUP BY id, kind HAVING max(before) <> max(after)) AS moved"
    " JOIN sweep_job ON sweep_job.job_id = moved.id"
    " JOIN definition ON definition.job_id = moved.id"
    " CROSS JOIN LATERAL (VALUES (moved.before, -1), (moved.after, 1)) AS change (state, jobs)"
    " GROUP BY 1, 2, 3"
)

# a plan is kept for statements of any size, so it must suit one row: no scan of a whole table
BY_INDEX = "SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        return
    op.execute("DROP TRIGGER job_moves ON job")
    op.execute("DROP TRIGGER job_counted ON job")
    op.execute("DROP FUNCTION xsweep_count_move()")
    # without a function for each row: its call takes longer than the rest of an update
    op.execute(
        f"CREATE TRIGGER job_moves BEFORE UPDATE ON job FOR EACH ROW WHEN ({ILLEGAL})"
        " EXECUTE FUNCTION xsweep_refuse('illegal move of a job')"
    )
    op.execute(
        "CREATE OR REPLACE FUNCTION xsweep_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF (NEW.state = 'done') <> EXISTS (SELECT 1 FROM result WHERE job_id = NEW.id)"
        " THEN RAISE integrity_constraint_violation USING MESSAGE = 'illegal move of a job';"
        " END IF; RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER job_results BEFORE UPDATE ON job FOR EACH ROW"
        " WHEN ('done' IN (OLD.state, NEW.state)) EXECUTE FUNCTION xsweep_move()"
    )
    op.execute(
        f"CREATE FUNCTION xsweep_moved() RETURNS trigger LANGUAGE plpgsql {BY_INDEX} AS $$ BEGIN"
        f" IF {HELD} THEN RAISE integrity_constraint_violation"
        f" USING MESSAGE = 'illegal move of a job'; END IF; {COUNT_MOVES}; RETURN NULL; END $$"
    )
    op.execute(
        "CREATE TRIGGER job_moved AFTER UPDATE ON job"
        " REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows"
        " FOR EACH STATEMENT EXECUTE FUNCTION xsweep_moved()"
    )
