"""Webhook: a sweep has finished, jobs have failed for good.

Each message is a JSON object of schema `xsweep.webhook/1` with `event` and `text`, a line for
people under the name that chat services look for. `finished` has `sweep`, `counts` ({state: jobs})
and `failed`; `failed` has `jobs` (`job_id name kind failure reason sweeps`, at most `NAMED`) and
`more`.
"""

import json
import logging
import queue
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from sqlalchemy import Engine

from xsweep import __version__
from xsweep.db.events import FailedAttempt, failures_since, history, last_event, record_event
from xsweep.db.status import SweepStatus, sweeps
from xsweep.errors import SetupError
from xsweep.orchestrator.forecast.eta import OPEN, count

log = logging.getLogger("xsweep")


SCHEMA = "xsweep.webhook/1"


NAMED = 20


REASON_CHARACTERS = 500


TRIES = 3


TIMEOUT_S = 10.0


FIRST_WAIT_S = 2.0
"""Before the second try; each further wait is four times as long."""


WAITING = 100
"""Messages that may wait for a slow receiver; further ones are dropped."""


WATCHED, ANNOUNCED = "watched", "announced"
"""Events of a sweep, by which the next controller announces what one that died could not."""


Done = Callable[[bool], None]
"""Called with whether a message was delivered."""


class Webhook:
    """Posts JSON to one URL, in order, from a thread: nobody waits for a slow receiver.

    The URL may hold a secret, as Slack's do: only its host is logged, and no redirect is followed.
    """

    def __init__(self, url: str, *, first_wait_s: float = FIRST_WAIT_S) -> None:
        """Raises SetupError for what is no http(s) URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SetupError("XSWEEP_WEBHOOK is no http:// or https:// URL: correct or unset it")
        self._url, self._host = url, parts.hostname
        self._first_wait_s = first_wait_s
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._messages: queue.Queue[tuple[dict[str, Any], Done] | None] = queue.Queue(WAITING)
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def post(self, content: dict[str, Any], done: Done = lambda delivered: None) -> bool:
        """Take a message without waiting; False where too many wait already, and it is dropped."""
        try:
            self._messages.put_nowait((content, done))
        except queue.Full:
            log.warning("webhook   %s: too many messages wait, one is dropped", self._host)
            return False
        return True

    def close(self, grace_s: float = TIMEOUT_S) -> None:
        """Send what waits, without waiting between tries, for at most `grace_s`."""
        self._leaving.set()
        try:
            self._messages.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(grace_s)

    def _work(self) -> None:
        while message := self._messages.get():
            content, done = message
            try:
                done(self._delivered(content))
            except Exception as error:  # the next message is to be sent nevertheless
                log.warning("webhook   %s", error)

    def _delivered(self, content: dict[str, Any]) -> bool:
        request = urllib.request.Request(  # noqa: S310  (its scheme was checked)
            self._url,
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json", "User-Agent": f"xsweep/{__version__}"},
        )
        for number in range(TRIES):
            if number:
                self._leaving.wait(self._first_wait_s * 4 ** (number - 1))
            try:
                with self._opener.open(request, timeout=TIMEOUT_S):
                    return True
            except (OSError, HTTPException, ValueError) as error:
                why = _reason(error)
                log.warning("webhook   %s: %s (try %d of %d)", self._host, why, number + 1, TRIES)
        return False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _reason(error: Exception) -> str:
    """What went wrong, without the URL."""
    if isinstance(error, HTTPError):
        return f"it answers {error.code}"
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or type(cause).__name__


class Announcer:
    """Looks at the job table and posts what is new in it."""

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
            record_event(self.engine, WATCHED, sweep_id=sweep.id)
        elif not is_open and self.pending[sweep.id]:
            self.pending[sweep.id] = False

            def done(delivered: bool) -> None:
                record_event(self.engine, ANNOUNCED, sweep_id=sweep.id, delivered=delivered)

            self.webhook.post(finished_message(sweep), done)

    def _was_left(self, sweep_id: int) -> bool:
        kinds = [each.kind for each in history(self.engine, sweep_id=sweep_id)]
        return [kind for kind in kinds if kind in (WATCHED, ANNOUNCED)][-1:] == [WATCHED]

    def _new_troubles(self) -> list[FailedAttempt]:
        newest = last_event(self.engine)
        if newest == self.seen:
            return []
        found = failures_since(self.engine, self.seen)
        self.seen = newest
        return [each for each in found if each.event <= newest]


def finished_message(sweep: SweepStatus) -> dict[str, Any]:
    """`small finished: 18 of 19 jobs done, 1 failed`."""
    states = Counter[str]()
    for by_state in sweep.counts.values():
        states.update(by_state)
    done = f"{states['done']} of {sweep.total} jobs done"
    others = "".join(f", {jobs} {state}" for state, jobs in states.items() if state != "done")
    return {
        "schema": SCHEMA,
        "event": "finished",
        "sweep": sweep.name,
        "state": sweep.state,
        "counts": dict(states),
        "failed": states["failed"],
        "text": f"{sweep.name} finished: {done}{others}",
    }


def failed_message(failed: list[FailedAttempt]) -> dict[str, Any]:
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
