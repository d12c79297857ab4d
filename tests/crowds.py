"""What tests with many processes ask of them, and of the table that they work on."""

import time
from collections import Counter
from collections.abc import Iterable
from multiprocessing.process import BaseProcess

from chaos import CHAOS
from job_table import counts
from sqlalchemy import Engine, text

from xsweep.db.events import history
from xsweep.db.transaction import transact

PATIENCE_S = 800 if CHAOS else 120


def join(processes: Iterable[BaseProcess]) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(max(0.0, give_up_at - time.monotonic()))
        assert process.exitcode is not None, "still running"


def let_leases_run_out(engine: Engine, owner: str) -> None:
    past = text("UPDATE attempt SET lease_until = 1 WHERE owner = :owner AND outcome IS NULL")
    transact(engine, lambda c: c.execute(past, {"owner": owner}))


def to_do(engine: Engine) -> int:
    return sum(counts(engine).get(state, 0) for state in ("waiting", "ready"))


def accepted(engine: Engine) -> Counter[str]:
    """Acceptances by job, from the history."""
    events = history(engine, latest=1_000_000)
    return Counter(str(event.job_id) for event in events if event.kind == "accepted")
