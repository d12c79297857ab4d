"""Databases of every older schema, with data: stored dumps in `schemas/`, never edited afterwards.

A dump (SQLite's `.dump`) comes from the version of that schema; its rows are also copied into the
tables that the migrations up to that revision make in PostgreSQL.
"""

import os
import shutil
import signal
import sqlite3
from itertools import count
from pathlib import Path

import pytest
from job_table import finish, new_job, run_all, states, study, submit
from sqlalchemy import Engine, event, text

from xsweep.db import jobs
from xsweep.db.check import check
from xsweep.db.engine import connect, open_engine, schema_version, upgrade
from xsweep.db.results import load_cells
from xsweep.db.schema import REVISION, VERSION_TABLE
from xsweep.db.status import summary
from xsweep.errors import SetupError

DUMPS = sorted((Path(__file__).parent / "schemas").glob("*.sql"))

STATES = {
    "first": "done",
    "tokens": "done",
    "candidates": "done",
    "train s1": "done",
    "evaluate s1 dl19": "done",
    "evaluate s1 dl20": "done",
    "train s2": "running",
    "evaluate s2 dl19": "waiting",
    "evaluate s2 dl20": "waiting",
    "poison": "failed",
    "after poison": "skipped",
    "dropped": "cancelled",
}


@pytest.fixture(params=DUMPS, ids=lambda path: path.stem)
def dump(request) -> Path:
    return request.param


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow(0.1))])
def old_url(request, dump: Path, tmp_path: Path) -> str:
    """A database of the dump's schema that holds its rows."""
    path = tmp_path / "old.db"
    old = sqlite3.connect(path)
    old.executescript(dump.read_text())
    if request.param == "sqlite":
        old.close()
        return f"sqlite:///{path}"
    url = request.getfixturevalue("empty_postgresql_url")
    engine = open_engine(url)
    upgrade(engine, dump.stem)
    copy_rows(old, engine)
    engine.dispose()
    old.close()
    return url


def copy_rows(old: sqlite3.Connection, engine: Engine) -> None:
    old.row_factory = sqlite3.Row
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    tables = {name for (name,) in old.execute(query)} - {VERSION_TABLE}
    with engine.begin() as connection:
        # triggers and keys see nothing, as in a restored backup
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table in tables:
            for row in old.execute(f"SELECT * FROM {table}"):
                columns = ", ".join(row.keys())
                values = ", ".join(f":{column}" for column in row.keys())  # noqa: SIM118
                insert = text(f"INSERT INTO {table} ({columns}) VALUES ({values})")
                connection.execute(insert, dict(row))
        for table in tables & {"sweep", "job", "query_set", "event", "tally"}:
            last = f"setval('{table}_id_seq', (SELECT max(id) FROM {table}))"
            connection.execute(text(f"SELECT {last}"))


def test_every_older_schema_has_a_stored_database():
    assert [path.stem for path in DUMPS] == [f"{n:04}" for n in range(1, int(REVISION))]


def test_an_older_database_is_refused_until_it_is_upgraded(old_url, dump):
    with pytest.raises(SetupError, match=f"older schema {dump.stem}; run `xsweep db upgrade`"):
        connect(old_url)
    engine = connect(old_url, create=True)
    assert schema_version(engine) == REVISION
    engine.dispose()
    connect(old_url).dispose()


def test_an_upgraded_database_keeps_its_rows_and_runs_its_jobs(old_url):
    engine = connect(old_url, create=True)
    assert states(engine) == STATES
    assert check(engine) == []
    small, shared = summary(engine).sweeps
    assert small.counts == {
        "train": {"done": 2, "running": 1},
        "prepare": {"done": 2},
        "evaluate": {"done": 2, "waiting": 2},
    }
    assert (shared.state, shared.total) == ("paused", 8)
    assert small.cost_s["evaluate"] == {"done": 2.0, "waiting": 2.0}
    cell, *_ = load_cells(engine, "study")
    assert cell.scores["AP"].tolist() == [0.5, 1 / 3]

    (held,) = jobs.running(engine)
    assert (held.name, held.token, held.actor) == ("train s2", 1, "xsweep-1")
    assert finish(engine, held)
    assert submit(engine, [new_job("first"), *study(seeds=[1, 2, 3])]).new == 3
    jobs.resume(engine, "shared")
    assert jobs.retry(engine, sweep="shared") == 3
    run_all(engine)
    assert set(states(engine).values()) == {"done"}
    assert check(engine) == []
    engine.dispose()


def test_an_interrupted_upgrade_keeps_the_old_schema(old_url, dump):
    def break_off(connection, cursor, statement, *_):
        if statement.startswith(f"UPDATE {VERSION_TABLE}"):
            raise KeyboardInterrupt

    engine = open_engine(old_url)
    event.listen(engine, "before_cursor_execute", break_off)
    with pytest.raises(KeyboardInterrupt):
        upgrade(engine)
    event.remove(engine, "before_cursor_execute", break_off)
    assert schema_version(engine) == dump.stem
    upgrade(engine)
    assert states(engine) == STATES
    engine.dispose()


@pytest.mark.slow(2)
def test_an_upgrade_that_is_killed_before_any_statement_keeps_the_old_database(tmp_path):
    old = sqlite3.connect(tmp_path / "old.db")
    old.executescript(DUMPS[0].read_text())
    old.close()
    for number in count():
        path = tmp_path / f"{number}.db"
        shutil.copy(tmp_path / "old.db", path)
        child = os.fork()
        if not child:
            engine, left = open_engine(f"sqlite:///{path}"), iter(range(number))

            def kill(*_, left=left):
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)

            event.listen(engine, "before_cursor_execute", kill)
            event.listen(engine, "commit", kill)
            upgrade(engine)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        engine = connect(f"sqlite:///{path}", create=True)
        assert states(engine) == STATES
        assert check(engine) == []
        engine.dispose()
        if not killed:
            break
    assert number > 10
