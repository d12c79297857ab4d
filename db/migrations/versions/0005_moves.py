"""SQLite looks a move up in a text: a list of moves would be built again for each row."""

from alembic import op

revision = "0005"

down_revision = "0004"

LEGAL = (
    " ready>running running>done waiting>ready running>ready running>failed waiting>skipped"
    " waiting>cancelled ready>cancelled running>cancelled failed>waiting failed>ready"
    " skipped>waiting skipped>ready cancelled>waiting cancelled>ready ready>skipped done>ready"
    " ready>waiting running>waiting "
)

ILLEGAL = (
    "(OLD.state <> NEW.state"  # noqa: S608
    f" AND NOT instr('{LEGAL}', ' ' || OLD.state || '>' || NEW.state || ' '))"
    " OR NEW.token < OLD.token OR NEW.identity <> OLD.identity OR NEW.kind <> OLD.kind"
    " OR (NEW.state = 'done' AND NOT EXISTS (SELECT 1 FROM result WHERE result.job_id = NEW.id))"
    " OR (OLD.state = 'done' AND NEW.state <> 'done'"
    " AND EXISTS (SELECT 1 FROM result WHERE result.job_id = NEW.id))"
    " OR (NEW.state <> 'running' AND EXISTS"
    " (SELECT 1 FROM attempt WHERE attempt.job_id = NEW.id AND attempt.outcome IS NULL))"
)


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER job_moves")
        op.execute(
            f"CREATE TRIGGER job_moves BEFORE UPDATE ON job WHEN {ILLEGAL}"
            " BEGIN SELECT RAISE(ABORT, 'illegal move of a job'); END"
        )
