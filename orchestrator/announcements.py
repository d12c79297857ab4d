"""What is announced by webhook: a sweep has finished, jobs have failed for good.

Each is a JSON object of schema `xsweep.webhook/1` with `event` and `text`, a line for people under
the name that chat services look for. `finished` has `sweep`, `counts` ({state: jobs}) and `failed`;
`failed` has `jobs` (`job_id name kind failure reason sweeps`, at most `NAMED`) and `more`.

A sweep that is begun to be watched and one that was announced are events of the sweep, so that a
controller that dies at the end of a sweep leaves the announcement to the next one.
"""

import logging
from typing import Any

from sqlalchemy import Engine

from db.events import history, note
from db.status import SweepStatus, sweeps
from db.troubles import Trouble, last_event, troubles_since
from orchestrator.forecast import OPEN, count
from orchestrator.webhook import Webhook

log = logging.getLogger("xsweep")

NAMED = 20
REASON_CHARACTERS = 500
SCHEMA = "xsweep.webhook/1"
WATCHED, ANNOUNCED = "watched", "announced"


class Announcer:
    """Looks at the job table and hands to the webhook what is new in it."""

    def __init__(self, engine: Engine, webhook: Webhook) -> None:
        self.engine, self.webhook = engine, webhook
        self.seen = last_event(engine)
        self.pending: dict[int, bool] = {}
        """By sweep: whether its end is still to be announced."""

    def look(self) -> None:
        """Announce what has happened since the last look; a few queries by key."""
        for sweep in sweeps(self.engine):
            self._look_at(sweep)
        if failed := [each for each in self._new_troubles() if each.next == "failed"]:
            self.webhook.post(failed_message(failed))

    def _look_at(self, sweep: SweepStatus) -> None:
        if sweep.id not in self.pending:
            self.pending[sweep.id] = self._was_left(sweep.id)
        is_open = count(sweep, OPEN) > 0 and sweep.state != "cancelled"
        if is_open and not self.pending[sweep.id]:
            self.pending[sweep.id] = True
            note(self.engine, WATCHED, sweep_id=sweep.id)
        elif not is_open and self.pending[sweep.id]:
            self.pending[sweep.id] = False

            def done(delivered: bool) -> None:
                note(self.engine, ANNOUNCED, sweep_id=sweep.id, delivered=delivered)

            self.webhook.post(finished_message(sweep), done)

    def _was_left(self, sweep_id: int) -> bool:
        kinds = [each.kind for each in history(self.engine, sweep_id=sweep_id)]
        told = [kind for kind in kinds if kind in (WATCHED, ANNOUNCED)]
        return bool(told) and told[-1] == WATCHED

    def _new_troubles(self) -> list[Trouble]:
        newest = last_event(self.engine)
        if newest == self.seen:
            return []
        found = troubles_since(self.engine, self.seen)
        self.seen = newest
        return [each for each in found if each.event <= newest]


def finished_message(sweep: SweepStatus) -> dict[str, Any]:
    """`small finished: 18 of 19 jobs done, 1 failed`."""
    states: dict[str, int] = {}
    for by_state in sweep.counts.values():
        for state, jobs in by_state.items():
            states[state] = states.get(state, 0) + jobs
    done = f"{states.get('done', 0)} of {sweep.total} jobs done"
    others = "".join(f", {jobs} {state}" for state, jobs in states.items() if state != "done")
    return {
        "schema": SCHEMA,
        "event": "finished",
        "sweep": sweep.name,
        "state": sweep.state,
        "counts": states,
        "failed": states.get("failed", 0),
        "text": f"{sweep.name} finished: {done}{others}",
    }


def failed_message(failed: list[Trouble]) -> dict[str, Any]:
    """`2 jobs failed: train L6 infonce s1: NAN: the loss of step 7 is nan; …`."""
    jobs = [
        {
            "job_id": each.job_id,
            "name": each.name,
            "kind": each.kind,
            "failure": each.failure,
            "reason": each.reason.strip().partition("\n")[0][:REASON_CHARACTERS],
            "sweeps": list(each.sweeps),
        }
        for each in failed[:NAMED]
    ]
    lines = "; ".join(f"{job['name']}: {job['failure']}: {job['reason']}" for job in jobs[:3])
    many = "1 job" if len(failed) == 1 else f"{len(failed)} jobs"
    more = "; …" if len(failed) > 3 else ""
    return {
        "schema": SCHEMA,
        "event": "failed",
        "jobs": jobs,
        "more": len(failed) - len(jobs),
        "text": f"{many} failed: {lines}{more}",
    }
