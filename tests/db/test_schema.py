import itertools

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from job_table import finish, identity, new_job, submit, take
from sqlalchemy import Engine, insert, text, update
from sqlalchemy.exc import DBAPIError

from xsweep.db.engine import MIGRATIONS, schema_version, upgrade
from xsweep.db.schema import (
    BROKEN,
    OPEN,
    REVISION,
    VERSION_TABLE,
    Attempt,
    Base,
    Event,
    Job,
    Result,
    State,
)

MOVES = {
    (State.READY, State.RUNNING),  # claimed
    (State.RUNNING, State.DONE),  # accepted
    (State.WAITING, State.READY),  # its parents are done
    (State.RUNNING, State.READY),  # tried again
    (State.RUNNING, State.FAILED),
    (State.WAITING, State.SKIPPED),  # a parent is broken
    (State.READY, State.SKIPPED),  # its column of the grid is stopped
    (State.DONE, State.READY),  # redone
    (State.READY, State.WAITING),  # a parent is redone
    (State.RUNNING, State.WAITING),
    *((state, State.CANCELLED) for state in OPEN),
    *((old, new) for old in BROKEN for new in (State.WAITING, State.READY)),  # retried
}
APPEND_ONLY = ("definition", "event", "query_set", "result", "score")


def moved(engine: Engine, old: State, new: State) -> bool:
    """True if the table allows a move of an otherwise consistent job."""
    row = {
        "id": 1,
        "identity": identity("job"),
        "kind": "train",
        "name": "job",
        "state": old,
        "missing_parents": int(old in (State.WAITING, State.SKIPPED)),
        "priority": 0,
        "critical_s": 1.0,
        "token": 1,
        "forgiven_token": 0,
        "failure": "NAN" if old == State.FAILED else None,
        "created_at": 0.0,
    }
    change = {
        "state": new,
        "missing_parents": int(new == State.WAITING),
        "failure": "NAN" if new == State.FAILED else None,
    }
    attempt = {"job_id": 1, "token": 1, "owner": "a", "claimed_at": 0, "ended_at": 0}
    result = {"job_id": 1, "token": 1, "folder": "f", "manifest_sha256": "m", "accepted_at": 0}
    with engine.connect() as connection:  # never committed
        connection.execute(insert(Job).values(row))
        connection.execute(insert(Attempt).values({**attempt, "outcome": "done"}))
        if new == State.DONE:
            connection.execute(insert(Result).values({**result, "summary": {}, "provenance": {}}))
        try:
            connection.execute(update(Job).values(change))
        except DBAPIError as error:
            if "illegal move" not in str(error):
                raise
            return False
    return True


def test_the_migrations_make_the_tables_of_the_models(engine):
    with engine.connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        # SQLite reports no indexes on expressions
        ignored = {"job_claim_ix"} if engine.dialect.name == "sqlite" else set()
        differences = [
            difference
            for difference in compare_metadata(context, Base.metadata)
            if getattr(difference[1], "name", None) not in ignored
        ]
    assert differences == []


def test_the_revision_of_the_models_is_the_newest_migration():
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [REVISION]
    assert all(script.revision.isdigit() for script in scripts.walk_revisions())


def test_the_database_allows_exactly_the_moves_of_the_state_machine(engine):
    allowed = {(old, new) for old in State for new in State if moved(engine, old, new)}
    assert allowed == MOVES | {(state, state) for state in State}


@pytest.mark.parametrize(
    "change",
    [
        "token = 0",
        f"identity = '{'0' * 64}'",
        "state = 'done'",  # no result
        "state = 'nonsense'",
        "state = 'waiting'",  # for nothing
        "missing_parents = -1",
        "missing_parents = 1",  # and yet running
        "failure = 'NAN'",  # and yet running
        "state = 'failed'",  # without a failure class
        "state = 'ready'",  # with a live attempt
    ],
)
def test_a_row_that_contradicts_itself_is_refused(engine, change):
    submit(engine, [new_job("train")])
    take(engine)
    with pytest.raises(DBAPIError), engine.begin() as connection:
        connection.execute(text(f"UPDATE job SET {change}"))


@pytest.mark.parametrize(("table", "verb"), itertools.product(APPEND_ONLY, ("UPDATE", "DELETE")))
def test_append_only_tables_refuse_updates_and_deletions(engine, table, verb):
    submit(engine, [new_job("test", kind="evaluate")])
    finish(engine, take(engine), scores={"AP": {"q1": 1.0}}, query_set_name="dl19")
    column = Base.metadata.tables[table].columns.keys()[0]
    statement = {
        "UPDATE": f"UPDATE {table} SET {column} = {column}",
        "DELETE": f"DELETE FROM {table}",
    }
    with pytest.raises(DBAPIError, match=f"{table} is append-only"), engine.begin() as connection:
        connection.execute(text(statement[verb]))


def test_a_second_result_is_impossible(engine):
    submit(engine, [new_job("train")])
    finish(engine, take(engine))
    again = "INSERT INTO result SELECT job_id, token, 'other', 'm', '{}', '{}', 0 FROM result"
    with pytest.raises(DBAPIError, match=r"UNIQUE|unique"), engine.begin() as connection:
        connection.execute(text(again))


def test_an_upgrade_of_the_newest_schema_changes_nothing(engine):
    upgrade(engine)
    assert schema_version(engine) == REVISION
    submit(engine, [new_job("train")])
    assert take(engine).token == 1


def test_event_ids_are_never_reused(engine):
    event = {"at": 0.0, "kind": "test", "detail": {}}
    made = insert(Event).values(event).returning(Event.id)
    with engine.begin() as connection:
        first = connection.scalar(made)
        if engine.dialect.name == "sqlite":
            connection.execute(text("DROP TRIGGER event_no_delete"))
        else:
            connection.execute(text("DROP TRIGGER event_append_only ON event"))
        connection.execute(text("DELETE FROM event"))
        assert connection.scalar(made) > first


def test_a_job_with_a_result_stays_done(engine):
    submit(engine, [new_job("test")])
    finish(engine, take(engine))
    with pytest.raises(DBAPIError, match="illegal move"), engine.begin() as connection:
        connection.execute(text("UPDATE job SET state = 'ready'"))
