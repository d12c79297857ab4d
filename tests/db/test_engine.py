import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from job_table import finish, new_job, run_all, states, study, submit, take
from postgresql import administer
from sqlalchemy import create_engine, text
from waiting import wait_for

import xsweep.db.engine
import xsweep.db.status
from xsweep.db import controllers, jobs, status
from xsweep.db.engine import (
    backup,
    connect,
    network_file_system,
    open_engine,
    redacted,
    schema_version,
)
from xsweep.db.schema import REVISION
from xsweep.db.transaction import transact
from xsweep.errors import ConfigError, SetupError

MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
tmpfs /home/scratch tmpfs rw 0 0
//nas/my\\040data /mnt/my\\040data cifs rw 0 0
/dev/vdb /data ext4 rw 0 0
server:/x /data nfs rw 0 0
"""


def refused(url: str, **more) -> str:
    """The message with which a database is refused."""
    with pytest.raises(SetupError) as caught:
        connect(url, **more)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


def on(url: str, statement: str) -> None:
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_create_makes_the_tables_in_an_empty_database(tmp_path, empty_postgresql_url):
    for url in (f"sqlite:///{tmp_path}/new folder/x.db", empty_postgresql_url):
        engine = connect(url, create=True)
        assert schema_version(engine) == REVISION
        engine.dispose()
        connect(url).dispose()


def test_an_empty_database_stays_empty_without_create(tmp_path, empty_postgresql_url):
    path = tmp_path / "x.db"
    assert "no such file yet" in refused(f"sqlite:///{path}")
    assert not path.exists()
    assert "holds no tables yet; run `xsweep db upgrade`" in refused(empty_postgresql_url)
    path.touch()
    assert "holds no tables yet" in refused(f"sqlite:///{path}")
    assert path.stat().st_size == 0


def test_a_read_only_engine_reads_new_rows_and_cannot_write(url):
    writer = connect(url)
    reader = connect(url, read_only=True)
    submit(writer, study(seeds=[1]))
    assert len(states(reader)) == 5
    run_all(writer)
    assert set(states(reader).values()) == {"done"}
    with pytest.raises(SetupError, match=r"readonly database|read-only transaction"):
        jobs.pause(reader, "study")
    for engine in (writer, reader):
        engine.dispose()


def test_a_read_only_engine_makes_no_file_and_no_tables(tmp_path):
    path = tmp_path / "100% mine.db"
    assert "no such file yet" in refused(f"sqlite:///{path}", read_only=True)
    assert not path.exists()
    connect(f"sqlite:///{path}", create=True).dispose()
    connect(f"sqlite:///{path}", read_only=True).dispose()


def test_sqlite_runs_with_durable_settings(tmp_path):
    engine = connect(f"sqlite:///{tmp_path}/x.db", create=True)
    with engine.connect() as connection:
        pragmas = {
            name: connection.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 60_000,
    }


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "the database URL cannot be read: write sqlite:///"),
        ("", "the database URL cannot be read"),
        ("postgresql://me:secret@host:port/db", "the database URL cannot be read"),
        ("postgresql://host.invalid/db?password=secret", "check that the server runs"),
        ("postgresql://me:my@secret@host/db", "write an @ in its password as %40"),
        ("mysql://me:secret@host/db", "mysql is not supported"),
        ("sqlite://", "a database in memory is lost at exit"),
        ("sqlite:///:memory:", "a database in memory is lost at exit"),
        ("sqlite:////proc/nowhere/x.db", "cannot make the folder"),
        ("sqlite:////tmp", "is a folder; name a file in it"),
        ("postgresql://me:secret@127.0.0.1:1/db", "check that the server runs"),
        ("postgresql://me:secret@no-such-host.invalid/db", "check that the server runs"),
    ],
)
def test_a_wrong_url_raises_one_clear_message_without_the_password(url, message):
    refusal = refused(url, create=True)
    assert message in refusal
    assert "secret" not in refusal


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@host/db",
        "postgresql+psycopg://me:secret@host:5432/db?sslmode=require",
        "postgres://me:secret@host/db",
    ],
)
def test_passwords_are_never_shown(url):
    assert "secret" not in redacted(url)
    assert "me:***@host" in redacted(url)
    assert "secret" not in redacted(f"{url.replace('secret@', 'my@secret@')}")
    assert "secret" not in redacted("postgresql://host/db?user=me&password=secret")
    engine = open_engine(url)
    assert "secret" not in f"{engine} {engine.url} {engine!r}"


def test_a_missing_file_is_named_as_it_was_given_to_readers_too(tmp_path):
    url = f"sqlite:///{tmp_path}/a b.db"
    assert redacted(open_engine(url, read_only=True).url) == url
    assert refused(url, read_only=True).startswith(f"database {url}: no such file yet")


def test_an_unreadable_url_is_not_shown_at_all():
    assert redacted("postgresql//me:secret@host") == "(not a database URL)"


def test_a_wrong_password_is_refused(postgresql_server):
    on(postgresql_server, "CREATE ROLE locked LOGIN PASSWORD 'right'")
    with create_engine(open_engine(postgresql_server).url).connect() as connection:
        path = Path(connection.scalar(text("SHOW hba_file")) or "")
    rules = path.read_text()
    path.write_text("local all locked scram-sha-256\n" + rules)
    try:
        on(postgresql_server, "SELECT pg_reload_conf()")
        url = postgresql_server.replace("postgres:@", "locked:wrong@")
        message = refused(url)
        assert "password authentication failed" in message
        assert "check user and password" in message
        assert "wrong" not in message
        assert "holds no tables" in refused(url.replace("wrong", "right"))
    finally:
        path.write_text(rules)
        on(postgresql_server, "SELECT pg_reload_conf()")


def test_a_database_that_does_not_exist_is_refused(postgresql_server):
    message = refused(postgresql_server.replace("/postgres?", "/nowhere?"))
    assert 'database "nowhere" does not exist; create it first' in message


def test_a_database_of_another_program_is_refused_and_untouched(tmp_path, empty_postgresql_url):
    path = tmp_path / "x.db"
    for url in (f"sqlite:///{path}", empty_postgresql_url):
        on(url, "CREATE TABLE songs (title TEXT)")
        before = path.read_bytes()
        for create in (True, False):
            message = refused(url, create=create)
            assert "belongs to another program (tables songs, ...)" in message
        assert path.read_bytes() == before


def test_a_newer_schema_is_refused_and_untouched(url):
    on(url, "UPDATE xsweep_schema SET version_num = '0999'")
    for create in (True, False):
        message = refused(url, create=create)
        assert f"its schema is 0999, newer than this xsweep's {REVISION}; update xsweep" in message


def test_an_older_schema_is_refused(url):
    on(url, "UPDATE xsweep_schema SET version_num = '0000'")
    assert "has the older schema 0000; run `xsweep db upgrade`" in refused(url)


def test_a_damaged_file_is_refused_and_untouched(tmp_path):
    path = tmp_path / "x.db"
    path.write_bytes(b"this is no database at all" * 100)
    before = path.read_bytes()
    message = refused(f"sqlite:///{path}", create=True)
    assert "file is not a database" in message
    assert path.read_bytes() == before


def test_a_file_damaged_in_the_middle_fails_with_a_message(sqlite_model, tmp_path):
    path = tmp_path / "x.db"
    content = bytearray(sqlite_model.read_bytes())
    content[4096 * 2 :] = b"\xff" * (len(content) - 4096 * 2)
    path.write_bytes(content)
    with pytest.raises(SetupError, match=r"malformed; the file is damaged: restore a backup"):
        submit(connect(f"sqlite:///{path}"), [new_job("train")])


def test_a_read_only_sqlite_file_is_refused(sqlite_model, tmp_path):
    url = f"sqlite:///file:{sqlite_model}?mode=ro&uri=true"
    assert "readonly database; make the file and its folder writable" in refused(url)
    assert stat.S_IMODE(sqlite_model.stat().st_mode) & stat.S_IWUSR


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_postgresql_database_in_another_encoding_is_refused(postgresql_server, encoding):
    name = encoding.lower()
    administer(
        postgresql_server,
        f"CREATE DATABASE {name} ENCODING {encoding} TEMPLATE template0 LOCALE 'C'",
    )
    message = refused(postgresql_server.replace("/postgres?", f"/{name}?"), create=True)
    assert f"its encoding {encoding} lacks most characters" in message
    assert "`createdb --encoding=UTF8 --template=template0 NAME`" in message
    administer(postgresql_server, f"DROP DATABASE {name}")


def test_a_role_of_one_connection_reads_and_a_second_process_is_refused(postgresql_url):
    administer(postgresql_url, "CREATE ROLE single LOGIN CONNECTION LIMIT 1")
    try:
        on(postgresql_url, "GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO single")
        url = postgresql_url.replace("postgres:@", "single@")
        engine = connect(url)
        assert status.summary(engine).controllers == []
        message = refused(url)
        assert "too many connections" in message
        assert "raise its limit of connections" in message
        engine.dispose()
    finally:
        on(postgresql_url, "DROP OWNED BY single")
        on(postgresql_url, "DROP ROLE single")


def test_a_session_that_the_server_ended_while_it_was_idle_is_replaced(
    postgresql_url, postgresql_server
):
    name = open_engine(postgresql_url).url.database
    on(postgresql_url, f"ALTER DATABASE {name} SET idle_session_timeout = '50ms'")
    engine = connect(postgresql_url)
    submit(engine, [new_job("train")])
    sessions = text(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'")
    observer = open_engine(postgresql_server)
    with observer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        wait_for(lambda: connection.scalar(sessions) == 0)
    assert take(engine).name == "train"
    observer.dispose()
    engine.dispose()


def test_a_statement_that_takes_longer_than_the_server_allows_is_reported(postgresql_url):
    engine = connect(postgresql_url)
    with pytest.raises(SetupError, match="statement timeout; raise the role's"):
        transact(engine, lambda c: c.execute(text("SET statement_timeout = 9; SELECT pg_sleep(9)")))
    engine.dispose()


@pytest.mark.parametrize("character", ["\ud800", "\0"])
def test_a_text_that_no_database_stores_is_refused(url, character):
    engine = connect(url)
    if character == "\0" and engine.dialect.name == "sqlite":
        engine.dispose()
        return  # it stores one
    for verb in (
        lambda: submit(engine, [new_job("train")], f"study {character}"),
        lambda: submit(engine, [replace(new_job("train"), name=f"train {character}")]),
        lambda: jobs.explain(engine, f"train {character}"),
    ):
        with pytest.raises(ConfigError, match="cannot store the text") as caught:
            verb()
        assert caught.value.exit_code == 2
    assert submit(engine, [new_job("train")]).new == 1
    engine.dispose()


def test_a_read_only_server_is_refused(postgresql_url):
    name = open_engine(postgresql_url).url.database
    on(postgresql_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "read-only transaction; connect to the primary server" in refused(postgresql_url)


def test_missing_rights_of_a_role_are_reported(postgresql_url):
    on(postgresql_url, "CREATE ROLE guest LOGIN")
    try:
        on(postgresql_url, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO guest")
        message = refused(postgresql_url.replace("postgres:@", "guest@"))
        assert (
            "permission denied for table xsweep_schema; grant the role the missing rights"
            in message
        )
    finally:
        on(postgresql_url, "DROP OWNED BY guest")
        on(postgresql_url, "DROP ROLE guest")


def test_a_role_with_the_documented_rights_can_do_everything(postgresql_url, monkeypatch):
    grants = (
        "CREATE ROLE worker LOGIN",
        "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO worker",
        "GRANT DELETE ON controller, sweep_job, tally TO worker",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO worker",
    )
    for grant in grants:
        on(postgresql_url, grant)
    try:
        engine = connect(postgresql_url.replace("postgres:@", "worker@"))
        submit(engine, study())
        jobs.cancel(engine, job="train s1")
        jobs.retry(engine, sweep="study")
        assert len(run_all(engine)) == 8
        jobs.drop(engine, "study")
        controllers.register(engine, owner="alice", host="h", pid=1)
        monkeypatch.setattr(xsweep.db.status, "FOLD_ROWS", 1)
        assert controllers.heartbeat(engine, "alice")
        controllers.unregister(engine, "alice")
        engine.dispose()
    finally:
        on(postgresql_url, "DROP OWNED BY worker")
        on(postgresql_url, "DROP ROLE worker")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/x", "nfs4"),
        ("/home/scratch/me", None),
        ("/homes/me", None),
        ("/mnt/my data/x", "cifs"),
        ("/data", "nfs"),
        ("/var/lib", None),
    ],
)
def test_network_file_systems_are_recognised(path, kind):
    assert network_file_system(Path(path), MOUNTS) == kind


def test_sqlite_on_a_network_file_system_is_refused(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/x {tmp_path.resolve()} nfs4 rw 0 0\n")
    monkeypatch.setattr(xsweep.db.engine, "MOUNTS", mounts)
    message = refused(f"sqlite:///{tmp_path}/x.db", create=True)
    assert "SQLite loses data on a network file system (nfs4)" in message
    assert "XSWEEP_DB=postgresql://" in message
    assert list(tmp_path.iterdir()) == [mounts]


def test_a_backup_is_consistent_while_others_write(tmp_path, sqlite_model):
    engine = connect(f"sqlite:///{sqlite_model}".replace("model.db", "copied.db"), create=True)
    submit(engine, [new_job("train"), new_job("test", "train")])
    claim = take(engine)
    copy = tmp_path / "backups" / "copy.db"
    backup(engine, copy)
    finish(engine, claim)
    restored = connect(f"sqlite:///{copy}")
    assert states(restored) == {"train": "running", "test": "waiting"}
    assert jobs.running(restored)[0].name == "train"
    with pytest.raises(SetupError, match=r"copy\.db exists already"):
        backup(engine, copy)
    assert sqlite3.connect(copy).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_backup_of_postgresql_names_its_backup_command():
    engine = open_engine("postgresql://me:secret@host/db")
    with pytest.raises(SetupError) as caught:
        backup(engine, Path("copy.dump"))
    line = "pg_dump --format=custom --file=copy.dump 'postgresql://me:***@host/db'"
    assert line in str(caught.value)


def test_readers_do_not_wait_for_a_writer_that_holds_the_lock(url):
    writer = connect(url)
    submit(writer, study(seeds=[1]))
    with writer.connect() as connection, connection.begin():
        connection.execute(text("UPDATE job SET priority = priority"))
        reader = connect(url, read_only=True)
        assert len(states(reader)) == 5
        reader.dispose()
    writer.dispose()


READ = """
import os, sys
from xsweep.db.engine import connect
from xsweep.db.status import summary

if os.getuid() == 0:  # to whom no folder is read-only
    os.setgid(65534)
    os.setuid(65534)
print(len(summary(connect(sys.argv[1], read_only=True)).sweeps))
"""


def test_a_sqlite_file_in_a_folder_without_write_access_is_read(sqlite_model):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(sqlite_model, folder / "xsweep.db")
        (folder / "xsweep.db").chmod(0o444)
        folder.chmod(0o555)
        command = [sys.executable, "-c", READ, f"sqlite:///{folder}/xsweep.db"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("0\n", "")
        assert [path.name for path in folder.iterdir()] == ["xsweep.db"]
        folder.chmod(0o700)


def test_a_question_mark_in_the_path_of_a_url_is_refused():
    assert "write a ? in the file's path as %3F" in refused("sqlite:////data/exp?1/xsweep.db")
