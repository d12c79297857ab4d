"""One transaction per verb: begun, tried again while the database is away, errors translated.

Many rows at once, by each database's quickest way, and lists of keys in pieces it can take.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from sqlalchemy import URL, ColumnElement, Connection, Engine, Select, cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstrumentedAttribute

from xsweep.db.schema import Base
from xsweep.errors import SetupError

T = TypeVar("T")


log = logging.getLogger(__name__)


PATIENCE_S = 30.0
"""How long a verb waits for a database that went away: a restart takes seconds, and a lease, which
is longer, must end by itself when the outage is."""


FIRST_WAIT_S = 0.05


LONGEST_WAIT_S = 2.0


READING = "xsweep_reading"
"""Execution option of connections that only read; `engine` begins their transactions so."""


# PostgreSQL's classes and codes of errors that the same transaction may not meet again
PASSING = ("08", "40001", "40P01", "55P03", "57P01", "57P02", "57P03", "53300")


NO_PRIVILEGE = "42501"


HINTS = (
    ("database or disk is full", "free some space; what was committed is safe"),
    ("no space left on device", "free some space; what was committed is safe"),
    ("could not extend file", "free some space on the server; what was committed is safe"),
    ("readonly database", "make the file and its folder writable"),
    ("read-only transaction", "connect to the primary server with a role that may write"),
    ("database is locked", "another program holds it: end that, or use PostgreSQL to share it"),
    ("malformed", "the file is damaged: restore a backup (`xsweep db backup` makes them)"),
    ("not a database", "give the path of a database of xsweep, or of a new file"),
    ("disk i/o error", "the disk fails or went away: check it, then run again"),
    ("password authentication failed", "check user and password in XSWEEP_DB (or ~/.pgpass)"),
    ("no password supplied", "put the password into XSWEEP_DB or ~/.pgpass"),
    ("permission denied", "grant the role what it lacks; docs name the least that it needs"),
    ("does not exist", "create it first (`createdb NAME`), or correct XSWEEP_DB"),
    ("", "check that the server runs and that XSWEEP_DB names it, then run again"),
)


SECRETS = ("password", "sslpassword")
"""Parameters of a URL whose values are nobody's business."""


def shown(url: URL) -> str:
    """The URL without its passwords, for people and logs."""
    hidden = {name: "***" for name in SECRETS if name in url.query}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def setup_error(url: URL, error: Exception) -> SetupError:
    """What a driver's error means to a user: one line, no password, and what to do about it."""
    cause = getattr(error, "orig", None) or error
    line = " ".join(str(cause).split())
    hint = next(hint for sign, hint in HINTS if sign in line.lower())
    return SetupError(f"database {shown(url)}: {line}; {hint}")


def is_passing(error: BaseException | None) -> bool:
    """Whether the same transaction may succeed later: the server went away, or locks collided.

    `error` is the driver's own. SQLite's never pass: it has waited for its lock long enough.
    """
    if not type(error).__module__.startswith("psycopg"):
        return False
    state = getattr(error, "sqlstate", None)
    # without a code the server never answered
    return state.startswith(PASSING) if state else type(error).__name__ == "OperationalError"


def is_ours(engine: Engine, error: Any) -> bool:
    """Whether a driver's error is a rule or a statement of ours that is broken: a bug."""
    driver = engine.dialect.loaded_dbapi
    bugs = (driver.IntegrityError, driver.DataError, driver.ProgrammingError)
    return isinstance(error, bugs) and getattr(error, "sqlstate", None) != NO_PRIVILEGE


def transact(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run `work` in one writing transaction and return what it returns.

    Runs it again after a lost connection or a deadlock, with growing waits, for `PATIENCE_S` at
    most; so `work` must be right when an earlier run of it was committed unseen.
    Raises SetupError when the database stays away, is full, read-only or damaged.
    """
    return _patiently(engine, engine.begin, work)


def read(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run `work` on a connection that only reads, as patiently as `transact`."""
    return _patiently(engine, lambda: _connected(engine), work)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection on which everything read belongs to one moment, and that hinders no writer.

    Raises SetupError at once when the database does not answer: somebody sits and waits.
    """
    try:
        with _answering(engine) as connection:
            yield connection
    except DBAPIError as error:
        if is_ours(engine, error.orig):
            raise
        raise setup_error(engine.url, error) from error


def _connected(engine: Engine) -> Connection:
    options: dict[str, Any] = {READING: True}
    if engine.dialect.name == "postgresql":
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    return engine.connect().execution_options(**options)


def _answering(engine: Engine) -> Connection:
    """A connection that is not one of those that a restart of the server has cut."""
    connection = _connected(engine)
    try:
        connection.scalar(select(1))
    except DBAPIError as error:
        connection.close()
        if not error.connection_invalidated:
            raise
        connection = _connected(engine)  # the pool has thrown all old ones away
    return connection


def _patiently(
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
        except (DBAPIError, driver.Error) as error:
            cause = getattr(error, "orig", error)
            if is_ours(engine, cause):
                raise
            if not is_passing(cause) or time.monotonic() + wait_s > give_up_at:
                raise setup_error(engine.url, error) from error
            log.warning("database away, next try in %.2f s: %s", wait_s, type(cause).__name__)
        time.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


_encoder = json.JSONEncoder(allow_nan=False)  # one for all: making it takes longer than its work


PIECE = 5_000


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

    Types that a statement gives beyond the driver's own, such as JSON, are not for this. Raises
    SetupError when the database goes away.
    """
    if connection.dialect.name != "postgresql":
        return connection.execute(statement)
    compiled = statement.compile(
        dialect=connection.dialect, compile_kwargs={"render_postcompile": True}
    )
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
    """Whether a column (of texts or integers) is one of the values, all of them one parameter.

    Unlike a list of parameters it has no limit, and the database sees how many there are: it
    reads the table once for many, where for each piece of a list it might read all of it again.
    """
    if connection.dialect.name == "postgresql":
        return column.in_(select(func.unnest(cast(list(values), ARRAY(column.type)))))
    return column.in_(
        select(func.json_each(json.dumps(list(values))).table_valued("value").c.value)
    )


def pieces(values: Sequence[T], size: int = PIECE) -> Iterator[list[T]]:
    """The values in lists of at most `size`: statements have a limit of bound parameters."""
    for start in range(0, len(values), size):
        yield list(values[start : start + size])


def to_json(value: Any) -> str:
    """The text of a JSON column, as the engine's own serializer writes it.

    Raises ValueError for a float that is not finite.
    """
    return _encoder.encode(value)
