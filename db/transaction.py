"""Transactions that retry while the database is away, and statements on many rows at once."""

import json
import logging
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from sqlalchemy import (
    ARRAY,
    URL,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    Select,
    any_,
    cast,
    func,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstrumentedAttribute

from xsweep.db.schema import Base
from xsweep.errors import ConfigError, SetupError

T = TypeVar("T")

log = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""Seconds that a verb retries while the database is away: a restart takes seconds, and a lease,
which is longer, must be left to expire when the outage is."""

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0

PIECE = 5_000
"""Rows that one statement takes: databases limit its bound parameters."""

READING = "xsweep_reading"
"""Execution option of connections that only read; `engine` begins their transactions by it."""

# PostgreSQL's error classes and codes after which the same transaction may succeed
TRANSIENT = ("08", "25P03", "40001", "40P01", "55P03", "57P0", "53300")

NO_PRIVILEGE = "42501"

HINTS = (
    ("database or disk is full", "free some space; what was committed is safe"),
    ("no space left on device", "free some space; what was committed is safe"),
    ("could not extend file", "free some space on the server; what was committed is safe"),
    ("readonly database", "make the file and its folder writable"),
    ("unable to open database file", "make the file and its folder writable"),
    ("read-only transaction", "connect to the primary server with a role that may write"),
    ("during recovery", "connect to the primary server with a role that may write"),
    ("database is locked", "another program holds it: end that, or use PostgreSQL to share it"),
    ("malformed", "the file is damaged: restore a backup (`xsweep db backup` makes them)"),
    ("not a database", "give the path of a database of xsweep, or of a new file"),
    ("disk i/o error", "the disk failed or was removed: check it, then run again"),
    ("password authentication failed", "check user and password in XSWEEP_DB (or ~/.pgpass)"),
    ("no password supplied", "put the password into XSWEEP_DB or ~/.pgpass"),
    ("too many c", "end other programs that use it, or raise its limit of connections"),
    ("connection slots", "end other programs that use it, or raise its limit of connections"),
    ("statement timeout", "raise the role's: ALTER ROLE me SET statement_timeout = '10min'"),
    ("permission denied", "grant the role the missing rights; the documentation lists them"),
    ("does not exist", "create it first (`createdb NAME`), or correct XSWEEP_DB"),
    ("", "check that the server runs and that XSWEEP_DB names it, then run again"),
)

SECRETS = ("password", "sslpassword")
"""Parameters of a URL whose values must not be shown."""

_encoder = json.JSONEncoder(allow_nan=False)  # built once: building it takes longer than its work


def without_password(url: URL) -> str:
    """The URL without its passwords, for messages and logs."""
    hidden = {name: "***" for name in SECRETS if name in url.query}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def setup_error(url: URL, error: Exception) -> SetupError:
    """A driver's error as a user needs it: one line, no password, and a remedy."""
    cause = getattr(error, "orig", None) or error
    line = " ".join(str(cause).split())
    hint = next(hint for sign, hint in HINTS if sign in line.lower())
    return SetupError(f"database {without_password(url)}: {line}; {hint}")


def transact(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run `work` in one writing transaction and return its value.

    Runs it again after a lost connection or a deadlock, with growing waits, for `PATIENCE_S` at
    most; `work` must therefore be correct even if an earlier run was committed without a reply.
    Raises SetupError when the database stays away, is full, read-only or damaged, and ConfigError
    for a text that it cannot store.
    """
    return _retrying(engine, engine.begin, work)


def read(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run `work` on a connection that only reads; retries like `transact`."""
    return _retrying(engine, lambda: _connect(engine), work)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection that reads one consistent snapshot and blocks no writer.

    Raises SetupError at once when the database does not answer: a user is waiting.
    """
    try:
        with _connect(engine, check=True) as connection:
            yield connection
    except (DBAPIError, UnicodeEncodeError) as error:
        if refusal := _unstorable(error):
            raise refusal from error
        if _is_bug(engine, getattr(error, "orig", error)):
            raise
        raise setup_error(engine.url, error) from error


def _unstorable(error: Exception) -> ConfigError | None:
    """The refusal of a text that the driver cannot send, if that is the error."""
    text = f" {error.object!r:.100}" if isinstance(error, UnicodeEncodeError) else ""
    if not text and "NUL (0x00)" not in str(error):
        return None
    return ConfigError(
        f"the database cannot store the text{text}: it has a NUL, half of a surrogate pair, or a"
        " character that the database's encoding lacks"
    )


def _connect(engine: Engine, *, check: bool = False) -> Connection:
    """A connection that only reads; `check` replaces one that a restart of the server has cut."""
    options: dict[str, Any] = {READING: True}
    if engine.dialect.name == "postgresql":
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    connection = engine.connect().execution_options(**options)
    if check:
        try:
            connection.scalar(select(1))
        except DBAPIError as error:
            connection.close()
            if not error.connection_invalidated:
                raise
            return _connect(engine)  # the pool has discarded all old connections
    return connection


def _retrying(
    engine: Engine,
    connect: Callable[[], AbstractContextManager[Connection]],
    work: Callable[[Connection], T],
) -> T:
    driver = engine.dialect.loaded_dbapi
    give_up_at = time.monotonic() + PATIENCE_S
    wait_s = FIRST_WAIT_S
    while True:
        try:
            with connect() as connection:
                return work(connection)
        except (DBAPIError, driver.Error, UnicodeEncodeError) as error:
            if refusal := _unstorable(error):
                raise refusal from error
            cause = getattr(error, "orig", error)
            if _is_bug(engine, cause):
                raise
            if not _is_transient(cause) or time.monotonic() + wait_s > give_up_at:
                # one that was opened while all was read-only would stay so
                engine.dispose()
                raise setup_error(engine.url, error) from error
            log.warning("database away, next try in %.2f s: %s", wait_s, type(cause).__name__)
        time.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _is_transient(error: BaseException | None) -> bool:
    """Recognise errors after which the same transaction may succeed: server away, locks collided.

    `error` is the driver's own. SQLite's never are: it has waited for its lock long enough.
    """
    if not type(error).__module__.startswith("psycopg"):
        return False
    state = getattr(error, "sqlstate", None)
    # without a code the server never answered
    return state.startswith(TRANSIENT) if state else type(error).__name__ == "OperationalError"


def _is_bug(engine: Engine, error: Any) -> bool:
    """Recognise a driver's errors that come from a wrong statement or a violated constraint."""
    driver = engine.dialect.loaded_dbapi
    bugs = (driver.IntegrityError, driver.DataError, driver.ProgrammingError)
    return isinstance(error, bugs) and getattr(error, "sqlstate", None) != NO_PRIVILEGE


def insert_rows(
    connection: Connection, table: type[Base], columns: Sequence[str], rows: Iterable[tuple]
) -> None:
    """Insert rows of plain values (JSON columns as text, see `to_json`) in the order of `columns`.

    COPY takes about 5 µs a row where an INSERT per row takes 40; SQLite has nothing better than
    one prepared statement.
    """
    names = ", ".join(columns)
    cursor = connection.connection.cursor()
    try:
        if connection.dialect.name == "postgresql":
            with cursor.copy(f"COPY {table.__tablename__} ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        else:
            marks = ", ".join("?" * len(columns))
            insert = f"INSERT INTO {table.__tablename__} ({names}) VALUES ({marks})"  # noqa: S608
            cursor.executemany(insert, rows)  # type: ignore[arg-type]  # any iterable will do
    finally:
        cursor.close()


def in_binary(
    connection: Connection, statement: Select[*tuple[Any, ...]]
) -> Iterable[Sequence[Any]]:
    """The statement's rows; PostgreSQL sends bytes as they are and not as hexadecimal digits.

    Not for types that SQLAlchemy adds to the driver's own, such as JSON. Raises SetupError when
    the database is away.
    """
    if connection.dialect.name != "postgresql":
        return connection.execute(statement)
    options = {"render_postcompile": True}
    compiled = statement.compile(dialect=connection.dialect, compile_kwargs=options)
    cursor = connection.connection.cursor(binary=True)
    try:
        cursor.execute(str(compiled), compiled.params)
        return cursor.fetchall()
    except connection.dialect.loaded_dbapi.Error as error:
        raise setup_error(connection.engine.url, error) from error
    finally:
        cursor.close()


def among(
    connection: Connection, column: InstrumentedAttribute[T], values: Collection[T]
) -> ColumnElement[bool]:
    """The condition that a column (of texts or integers) is one of any number of values.

    The values are one parameter: unlike a list of parameters it has no limit, and the database
    sees how many there are: it reads the table once for many.
    """
    if connection.dialect.name == "postgresql":
        return column == any_(_array(column, values))
    return column.in_(listed(connection, column, values))


def listed(
    connection: Connection, column: InstrumentedAttribute[T], values: Collection[T]
) -> Select[T]:
    """The rows `value` of any number of values of a column's type, as one parameter."""
    if connection.dialect.name == "postgresql":
        return select(func.unnest(_array(column, values)).label("value"))
    return select(func.json_each(json.dumps(list(values))).table_valued("value").c.value)


def _array(column: InstrumentedAttribute[T], values: Collection[T]) -> ColumnElement[Sequence[T]]:
    given: Any = list(values)
    if isinstance(column.type, Integer):  # the driver takes longer to write an array
        given = func.string_to_array(",".join(map(str, values)), ",")
    return cast(given, ARRAY(column.type))


def pieces(values: Sequence[T], size: int = PIECE) -> Iterator[list[T]]:
    """The values in lists of at most `size`."""
    for start in range(0, len(values), size):
        yield list(values[start : start + size])


def to_json(value: Any) -> str:
    """The text of a JSON column, as the engine's own serializer writes it.

    Raises ValueError for a float that is not finite.
    """
    return _encoder.encode(value)
