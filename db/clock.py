"""The database's own clock: the only one that leases, retries and events are measured by."""

from typing import Any

from sqlalchemy import Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement


class now_s(FunctionElement[float]):
    """Seconds since 1970 by the database's clock, when the statement began.

    The beginning of a statement errs on the safe side: a lease granted after waiting for a lock
    ends early rather than late, and an expiry is seen late rather than early.
    """

    type = Double()
    inherit_cache = True
    name = "now_s"


@compiles(now_s, "sqlite")
def _sqlite(element: now_s, compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now_s, "postgresql")
def _postgresql(element: now_s, compiler: Any, **_: Any) -> str:
    return "CAST(extract(epoch FROM statement_timestamp()) AS double precision)"
