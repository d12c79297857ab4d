"""Accounts of tests with faults: the jobs, the kills, and their outcomes."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Engine, func, select

from xsweep.db.events import history
from xsweep.db.schema import Job, now_s
from xsweep.db.transaction import read

CHAOS = bool(os.environ.get("XSWEEP_CHAOS"))
"""True for the long forms of these tests: `make chaos`."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """One line of the summary of `make chaos`."""

    scenario: str
    jobs: int
    kills: int
    duplicates: int
    """Results accepted for a job that had one."""
    lost: int
    """Jobs that are not done at the end."""
    recoveries_s: tuple[float, ...]
    """Seconds from each kill until its jobs were claimed again."""


def account(
    engine: Engine,
    scenario: str,
    kills: int = 0,
    recoveries_s: Iterable[float] = (),
    expected: str = "done",
) -> Account:
    """Count jobs and results by the history of a database."""
    place = f"{scenario}, {'PostgreSQL' if engine.dialect.name == 'postgresql' else 'SQLite'}"
    counted = select(Job.state, func.count()).group_by(Job.state)
    states = dict(read(engine, lambda c: c.execute(counted).tuples().all()))
    results = Counter(e.job_id for e in history(engine, latest=10**7) if e.kind == "accepted")
    return Account(
        scenario=place,
        jobs=sum(states.values()),
        kills=kills,
        duplicates=sum(results.values()) - len(results),
        lost=sum(states.values()) - states.get(expected, 0),
        recoveries_s=tuple(recoveries_s),
    )


def clock(engine: Engine) -> float:
    """The time by the database's clock."""
    return read(engine, lambda c: c.scalar(select(now_s()))) or 0.0


def recoveries_s(engine: Engine, killed_at: Mapping[str, float]) -> list[float]:
    """From the kill of each owner to the next claim of every job that was taken back from it."""
    waiting: dict[int, float] = {}
    found = []
    for event in history(engine, latest=10**7):
        if event.kind == "expired" and event.owner in killed_at:
            waiting[event.job_id or 0] = killed_at[event.owner]
        elif event.kind == "claimed" and event.job_id in waiting:
            found.append(event.at - waiting.pop(event.job_id))
    return found


def table(accounts: list[Account]) -> list[str]:
    """The summary; its last line are the sums."""
    lines = [
        f"{'':58}{'jobs':>7}{'kills':>7}{'twice':>7}{'lost':>7}   recovery, median and longest"
    ]
    for each in accounts:
        times = sorted(each.recoveries_s)
        times_s = f"{times[len(times) // 2]:6.2f} s {times[-1]:6.2f} s" if times else ""
        figures = f"{each.jobs:>7}{each.kills:>7}{each.duplicates:>7}{each.lost:>7}   {times_s}"
        lines.append(f"{each.scenario:58}{figures}")
    sums = (
        sum(getattr(each, name) for each in accounts)
        for name in ("jobs", "kills", "duplicates", "lost")
    )
    return [*lines, f"{'together':58}" + "".join(f"{figure:>7}" for figure in sums)]
