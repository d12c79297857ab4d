"""Opening a database, SQLite in a file or PostgreSQL; what is doubtful is refused with a reason."""

import json
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError

from xsweep.db.schema import REVISION, VERSION_TABLE
from xsweep.db.transaction import READING, reading, setup_error, shown
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
    """The engine of an xsweep database that is there, ours, writable and of this schema.

    `create` makes the tables in an empty place and upgrades older ones; over a `read_only` engine
    the database itself refuses every write. Raises SetupError, and has changed nothing, for
    everything else: a wrong URL, no answer, a wrong password, a read-only or damaged database,
    another program's, a newer schema, SQLite on a network file system.
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
    """The URL without its password, for people and logs."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return "(not a database URL)"  # whatever it is, it may hold a password
    # an @ in a password that is not written as %40 ends it too early, and the rest would show
    return "(not a database URL)" if "@" in (parsed.host or "") else shown(parsed)


def open_engine(url: str, *, read_only: bool = False) -> Engine:
    """An engine with our rules of connecting and beginning; nothing is opened or checked yet.

    Raises SetupError when the URL is not one of SQLite's or PostgreSQL's.
    """
    parsed = _parse(url)
    codec: dict[str, Any] = {"json_serializer": partial(json.dumps, allow_nan=False)}
    if parsed.get_backend_name() == "postgresql":
        # a peer that vanished without a word is noticed after some 30 s, not after two hours
        defaults = {
            "connect_timeout": 10,
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
            "application_name": "xsweep",
        }
        arguments = {key: value for key, value in defaults.items() if key not in parsed.query}
        engine = create_engine(
            parsed, isolation_level="READ COMMITTED", connect_args=arguments, **codec
        )
        # many rows as one statement: the driver would send one per row
        engine.dialect.use_insertmanyvalues_wo_returning = True
        if read_only:
            event.listen(engine, "begin", _begin_read_only)
        return engine
    if read_only:
        query = {"mode": "ro", "uri": "true"}
        parsed = parsed.set(database=f"file:{quote(str(_file_of(parsed)))}", query=query)
    engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S}, **codec)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def schema_version(engine: Engine) -> str | None:
    """The revision of the tables there, None in an empty database.

    Raises SetupError for a database that holds another program's tables.
    """
    with reading(engine) as connection:
        return _revision(connection)


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the tables to this version's schema, all or nothing; two at a time queue up."""
    from alembic import command

    with engine.connect() as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('xsweep_schema'))"))
        command.upgrade(_alembic(connection), revision)
    if engine.dialect.name == "sqlite":
        raw = engine.raw_connection()
        raw.cursor().execute("PRAGMA journal_mode = WAL")  # stays in the file; readers never wait
        raw.close()


def backup(engine: Engine, path: Path) -> None:
    """Copy a SQLite database into a new file, consistent while others write.

    Raises SetupError when the file exists already; for PostgreSQL, with the pg_dump line to use.
    """
    if engine.dialect.name != "sqlite":
        source = redacted(engine.url.set(drivername="postgresql"))
        raise SetupError(
            f"PostgreSQL backs itself up; run: pg_dump --format=custom --file={path} '{source}'"
        )
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
        # of several mounts on one point the last one is seen, hence >= and not >
        if path.is_relative_to(point) and len(point.parts) >= len(holder.parts):
            holder, kind = point, fields[2]
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # a port that is no number is a ValueError
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
        raise SetupError(
            f"database {redacted(parsed)}: {backend} is not supported; use sqlite:/// or postgresql://"
        )
    if parsed.database in (None, "", ":memory:"):
        raise SetupError(
            "a database in memory is gone when the program ends: write sqlite:///path/to/xsweep.db"
        )
    return parsed


def _file_of(url: URL) -> Path:
    """SQLite's file; a `file:` URI is percent-encoded, a path is not."""
    name = str(url.database)
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:").partition("?")[0])
    return Path(name).absolute()


def _configure_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; `_begin_sqlite` does
    # 64 MiB of pages: the usual 2 are less than the index of thirty thousand identities
    for pragma in ("foreign_keys = ON", "synchronous = FULL", "cache_size = -65536"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # a writer takes the write lock at once: one that starts by reading cannot wait for it later
    is_reading = connection.get_execution_options().get(READING, False)
    connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")


def _begin_read_only(connection: Connection) -> None:
    # per transaction: the driver's own setting is reset when a connection goes back to the pool
    connection.exec_driver_sql("SET TRANSACTION READ ONLY")


def _check_place(url: URL, create: bool) -> None:
    path = _file_of(url)
    mounts = MOUNTS.read_text(errors="replace") if MOUNTS.exists() else ""
    if kind := network_file_system(path.parent.resolve(), mounts):
        raise SetupError(
            f"database {redacted(url)}: SQLite loses data on a network file system ({kind});"
            " put it on a local disk, or use PostgreSQL: XSWEEP_DB=postgresql://user@host/database"
        )
    if path.is_dir():
        raise SetupError(f"database {redacted(url)}: is a folder; name a file in it")
    if path.exists():
        return
    if not create:
        raise SetupError(
            f"database {redacted(url)}: no such file yet; submit a grid, or run `xsweep db upgrade`"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"database {redacted(url)}: cannot make the folder ({error.strerror}); name another"
        ) from error


def _check_schema(engine: Engine, create: bool, read_only: bool) -> None:
    options = {READING: read_only}
    with engine.connect().execution_options(**options) as connection:
        found = _revision(connection)
        if found == REVISION and read_only:
            return
        if found == REVISION:
            # a write that changes nothing and is not committed: read-only ways in are of no use
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = version_num"))  # noqa: S608
            return
    if found is not None and int(found) > int(REVISION):
        raise SetupError(
            f"database {redacted(engine.url)}: its schema is {found}, newer than this xsweep's"
            f" {REVISION}; update xsweep"
        )
    if not create:
        state = "holds no tables yet" if found is None else f"has the older schema {found}"
        raise SetupError(f"database {redacted(engine.url)}: {state}; run `xsweep db upgrade`")
    upgrade(engine)


def _revision(connection: Connection) -> str | None:
    tables: Sequence[str] = inspect(connection).get_table_names()
    if VERSION_TABLE in tables:
        return connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
    if tables:
        raise SetupError(
            f"database {redacted(connection.engine.url)}: belongs to another program"
            f" (tables {', '.join(sorted(tables)[:3])}, ...); name one of its own"
        )
    return None


def _alembic(connection: Connection) -> Any:
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
