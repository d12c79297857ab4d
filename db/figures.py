"""Counts of everything that happened, for monitoring: a few sums, and nothing of any single job."""

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, func, select

from db.clock import now_s
from db.controllers import SILENT_S
from db.schema import Attempt, Controller, Job, Sweep
from db.states import State
from db.tally import read_tally
from db.transactions import read


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The whole job table in numbers."""

    jobs: dict[tuple[str, str, str], int]
    """By sweep, kind and state; a job of two sweeps counts in both."""
    attempts: dict[str, int]
    """That ended, by outcome; `expired` ones lost their lease."""
    failures: dict[str, int]
    """Attempts that failed or expired, by class."""
    running: dict[str, int]
    """Live attempts by kind."""
    pairs_per_s: dict[str, float]
    """Of the live attempts together, by kind, as their workers told last."""
    queue_age_s: float
    """How long ago the oldest ready job was submitted; 0 where none is."""
    controllers: int
    """Heard of lately."""


def figures(engine: Engine) -> Figures:
    """Counts of the moment; ended attempts are counted anew each time, a scan of their table."""

    def work(connection: Connection) -> Figures:
        names = dict(connection.execute(select(Sweep.id, Sweep.name)).tuples().all())
        ended = select(Attempt.outcome, Attempt.failure, func.count())
        ended = ended.where(Attempt.outcome.is_not(None)).group_by(Attempt.outcome, Attempt.failure)
        attempts: dict[str, int] = defaultdict(int)
        failures: dict[str, int] = defaultdict(int)
        for outcome, failure, count in connection.execute(ended):
            attempts[str(outcome)] += count
            if failure is not None:
                failures[failure] += count
        running: dict[str, int] = defaultdict(int)
        pairs_per_s: dict[str, float] = defaultdict(float)
        live = select(Job.kind, Attempt.progress).join_from(Attempt, Job)
        for kind, progress in connection.execute(live.where(Attempt.outcome.is_(None))):
            running[kind] += 1
            pairs_per_s[kind] += float((progress or {}).get("pairs_per_s") or 0.0)
        oldest = select(func.min(Job.id)).where(Job.state == State.READY).scalar_subquery()
        age_s = connection.scalar(select(now_s() - Job.created_at).where(Job.id == oldest))
        heard = select(func.count()).where(now_s() - Controller.heartbeat_at <= SILENT_S)
        return Figures(
            jobs={
                (names.get(each.sweep_id, str(each.sweep_id)), each.kind, each.state): each.jobs
                for each in read_tally(connection)
            },
            attempts=dict(attempts),
            failures=dict(failures),
            running=dict(running),
            pairs_per_s=dict(pairs_per_s),
            queue_age_s=max(0.0, age_s or 0.0),
            controllers=connection.scalar(heard) or 0,
        )

    return read(engine, work)
