"""Many rows at once, by each database's quickest way, and lists of keys in pieces it can take."""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute

from db.schema import Base
from db.transactions import setup_error

T = TypeVar("T")
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
