"""Open, check, upgrade and back up a database: a SQLite file or PostgreSQL."""

import json
import os
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from xsweep.db.schema import REVISION, VERSION_TABLE
from xsweep.db.transaction import READING, reading, setup_error, without_password
from xsweep.errors import SetupError

BUSY_TIMEOUT_S = 60
MIGRATIONS = Path(__file__).parent / "migrations"
MOUNTS = Path("/proc/mounts")
NETWORK_FILE_SYSTEMS = frozenset(
    "9p afs beegfs ceph cifs fuse.cephfs fuse.gcsfuse fuse.glusterfs fuse.juicefs fuse.s3fs"  # noqa: SIM905
    " fuse.sshfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs3 nfs4 ocfs2 orangefs panfs pvfs2 smb3"
    " smbfs virtiofs wekafs".split()
)


def connect(url: str, *, create: bool = False, read_only: bool = False) -> Engine:
    """The engine of an xsweep database that exists, is writable and has this version's schema.

    `create` makes the tables in an empty database and upgrades older ones; with `read_only` the
    database itself refuses every write. Raises SetupError, and has changed nothing, for a wrong
    URL, no answer, a wrong password, a read-only or damaged database, one of another program, a
    newer schema, or SQLite on a network file system.
    """
    engine = open_engine(url, read_only=read_only)
    try:
        if engine.dialect.name == "sqlite":
            _check_place(engine.url, create)
        _check_schema(engine, create, read_only)
    except DBAPIError as error:
        engine.dispose()
        raise setup_error(engine.url, error) from error
    except SetupError:
        engine.dispose()
        raise
    return engine


def redacted(url: str | URL) -> str:
    """The URL without its passwords, for messages and logs; it need not be a valid one."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return "(not a database URL)"  # it may contain a password
    if (parsed.database or "").startswith("file:"):  # as `open_engine` makes it for readers
        parsed = parsed.set(database=str(_file_of(parsed)), query={})
    # an @ that is not written as %40 ends the password too early, and the rest would show
    return "(not a database URL)" if "@" in (parsed.host or "") else without_password(parsed)


def open_engine(url: str, *, read_only: bool = False) -> Engine:
    """An engine with our settings for connections and transactions; does not connect yet.

    Raises SetupError when the URL is neither of SQLite nor of PostgreSQL.
    """
    parsed = _parse(url)
    codec: dict[str, Any] = {"json_serializer": partial(json.dumps, allow_nan=False)}
    if parsed.get_backend_name() == "postgresql":
        # a peer that vanished is noticed after some 30 s, not after two hours
        defaults = {
            "connect_timeout": 10,
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
            "application_name": "xsweep",
            "client_encoding": "utf8",  # or texts of an SQL_ASCII database would be bytes
        }
        arguments = {key: value for key, value in defaults.items() if key not in parsed.query}
        settings = codec | {"isolation_level": "READ COMMITTED", "connect_args": arguments}
        engine = create_engine(parsed, **settings)
        # many rows as one statement: the driver would send one per row
        engine.dialect.use_insertmanyvalues_wo_returning = True
        if read_only:
            event.listen(engine, "begin", _begin_read_only)
        return engine
    if read_only:
        path = _file_of(parsed)
        query = {"mode": "ro", "uri": "true"}
        if not (os.access(path.parent, os.W_OK) or path.with_name(f"{path.name}-wal").exists()):
            query["immutable"] = "1"  # SQLite could not make the files that readers share
        parsed = parsed.set(database=f"file:{quote(str(path))}", query=query)
    engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S}, **codec)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def schema_version(engine: Engine) -> str | None:
    """The revision of the tables, None in an empty database.

    Raises SetupError for a database of another program.
    """
    with reading(engine) as connection:
        return _revision(connection)


def has_tables(url: str) -> bool:
    """Tests whether the database exists and holds xsweep's tables, without making it."""
    engine = open_engine(url, read_only=True)
    if engine.dialect.name == "sqlite" and not _file_of(engine.url).exists():
        return False
    return schema_version(engine) is not None


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Upgrade the tables to this version's schema, all or nothing; concurrent calls queue up."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    steps = ScriptDirectory(str(MIGRATIONS))
    with engine.connect() as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('xsweep_schema'))"))
        # no target metadata: its naming convention would rename the constraints
        with EnvironmentContext(
            Config(), steps, fn=lambda found, _: steps._upgrade_revs(revision, found)
        ) as context:
            context.configure(connection, version_table=VERSION_TABLE, transactional_ddl=True)
            context.run_migrations()
    if engine.dialect.name == "sqlite":
        raw = engine.raw_connection()
        raw.cursor().execute("PRAGMA journal_mode = WAL")  # stays in the file; readers never wait
        raw.close()


def backup(engine: Engine, path: Path) -> None:
    """Copy a SQLite database into a new file, consistent while others write.

    Raises SetupError when the file exists already, and for PostgreSQL, with the pg_dump command.
    """
    if engine.dialect.name != "sqlite":
        source = redacted(engine.url.set(drivername="postgresql"))
        command = f"pg_dump --format=custom --file={path} '{source}'"
        raise SetupError(f"PostgreSQL has its own backup command; run: {command}")
    if path.exists():
        raise SetupError(f"backup file {path} exists already: choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    try:
        with reading(engine) as connection:
            target = sqlite3.connect(unfinished)
            try:
                connection.connection.driver_connection.backup(target)  # type: ignore[union-attr]
            finally:
                target.close()
        unfinished.replace(path)
    except sqlite3.Error as error:
        unfinished.unlink(missing_ok=True)
        raise setup_error(engine.url, error) from error


def network_file_system(path: Path, mounts: str) -> str | None:
    """The type of the network file system that holds `path`, None when its disk is local.

    `mounts` is the text of /proc/mounts: `server:/home /home nfs4 rw 0 0` makes /home/x "nfs4".
    """
    holder, kind = Path("/"), ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        # the last of several mounts on one point is visible, hence >= and not >
        if path.is_relative_to(point) and len(point.parts) >= len(holder.parts):
            holder, kind = point, fields[2]
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: the port is not a number
        raise SetupError(
            "the database URL cannot be read: write sqlite:///path/to/xsweep.db"
            " or postgresql://user:password@host/database"
        ) from error
    if "@" in (parsed.host or ""):
        raise SetupError("the database URL cannot be read: write an @ in its password as %40")
    backend = parsed.drivername.partition("+")[0]
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise _refusal(parsed, f"{backend} is not supported; use sqlite:/// or postgresql://")
    if "?" in url and not parsed.query:
        raise SetupError("the database URL cannot be read: write a ? in the file's path as %3F")
    if parsed.database in (None, "", ":memory:"):
        raise SetupError("a database in memory is lost at exit: write sqlite:///path/to/xsweep.db")
    return parsed


def _file_of(url: URL) -> Path:
    """The path of SQLite's file; a `file:` URI is percent-encoded, a path is not."""
    name = str(url.database)
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:").partition("?")[0])
    return Path(name).absolute()


def _configure_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver begins no transaction; `_begin_sqlite` does
    # 64 MiB of pages: the default of 2 is less than the index of thirty thousand identities
    for pragma in ("foreign_keys = ON", "synchronous = FULL", "cache_size = -65536"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # a writer takes the write lock at once: one that begins by reading cannot wait for it later
    is_reading = connection.get_execution_options().get(READING, False)
    connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")


def _begin_read_only(connection: Connection) -> None:
    # per transaction: the driver's own setting is reset when a connection goes back to the pool
    connection.exec_driver_sql("SET TRANSACTION READ ONLY")


def _check_place(url: URL, create: bool) -> None:
    path = _file_of(url)
    mounts = MOUNTS.read_text(errors="replace") if MOUNTS.exists() else ""
    if kind := network_file_system(path.parent.resolve(), mounts):
        raise _refusal(
            url,
            f"SQLite loses data on a network file system ({kind}); put it on a local disk,"
            " or use PostgreSQL: XSWEEP_DB=postgresql://user@host/database",
        )
    if path.is_dir():
        raise _refusal(url, "is a folder; name a file in it")
    if path.exists():
        return
    if not create:
        raise _refusal(url, "no such file yet; submit a grid, or run `xsweep db upgrade`")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot make the folder ({error.strerror}); name another"
        raise _refusal(url, problem) from error


def _check_schema(engine: Engine, create: bool, read_only: bool) -> None:
    with engine.connect().execution_options(**{READING: read_only}) as connection:
        found, encoding = _revision(connection), None
        if found is None and engine.dialect.name == "postgresql":
            encoding = connection.scalar(text("SHOW server_encoding"))
        if found == REVISION:
            if not read_only:
                # changes nothing and is not committed, but fails where the access is read-only
                same = f"UPDATE {VERSION_TABLE} SET version_num = version_num"  # noqa: S608
                connection.execute(text(same))
            return
    if found is not None and int(found) > int(REVISION):
        problem = f"its schema is {found}, newer than this xsweep's {REVISION}; update xsweep"
        raise _refusal(engine.url, problem)
    if encoding not in (None, "UTF8"):
        problem = "make one with `createdb --encoding=UTF8 --template=template0 NAME`"
        raise _refusal(engine.url, f"its encoding {encoding} lacks most characters; {problem}")
    if not create:
        state = "holds no tables yet" if found is None else f"has the older schema {found}"
        raise _refusal(engine.url, f"{state}; run `xsweep db upgrade`")
    upgrade(engine)


def _revision(connection: Connection) -> str | None:
    tables: Sequence[str] = inspect(connection).get_table_names()
    if VERSION_TABLE in tables:
        return connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
    if tables:
        listed = ", ".join(sorted(tables)[:3])
        problem = f"belongs to another program (tables {listed}, ...); name one of its own"
        raise _refusal(connection.engine.url, problem)
    return None


def _refusal(url: URL, problem: str) -> SetupError:
    return SetupError(f"database {redacted(url)}: {problem}")
