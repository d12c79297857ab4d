"""Webhook: post when a sweep has finished and when jobs have failed for good.

docs/operations.md describes the messages, JSON objects of schema `xsweep.webhook/1`.
"""

import json
import logging
import queue
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from sqlalchemy import Engine

from xsweep import __version__
from xsweep.db.events import FailedAttempt, failures_since, history, last_event, record_event
from xsweep.db.status import SweepStatus, sweeps
from xsweep.errors import SetupError
from xsweep.orchestrator.forecast.eta import OPEN, count
from xsweep.orchestrator.formatting import counted

log = logging.getLogger("xsweep")

SCHEMA = "xsweep.webhook/1"
MOST_JOBS = 20
"""Jobs that one message lists."""
REASON_CHARACTERS = 500
MOST_WAITING = 100
"""Messages that wait for a slow receiver; more are dropped."""
TRIES = 3
TIMEOUT_S = 10.0
FIRST_WAIT_S = 2.0
"""Wait before the second try; each further wait is four times as long."""
LOOK_EVERY_S = 10.0
LOOK_INTERVALS = 100
"""Looks are at least this many times their own duration apart: at most 1% of a core."""
WATCHED, ANNOUNCED = "watched", "announced"
"""Events of a sweep, by which the next controller announces what a dead one could not."""
Done = Callable[[bool], None]
"""Called with whether a message was delivered."""


@contextmanager
def announcing(engine: Engine, url: str | None) -> Iterator[Callable[[], None]]:
    """Give a function, to be called often, that posts what is new; once more at the end.

    Without a URL nothing is posted. Raises SetupError for an invalid URL; the function raises it
    while the database is away.
    """
    if url is None:
        yield lambda: None
        return
    webhook = Webhook(url)
    announcer = Announcer(engine, webhook)
    due_s = 0.0

    def look() -> None:
        try:
            announcer.look()
        except SetupError:
            raise
        except Exception:
            log.exception("a message to the webhook is left out; the sweep goes on")

    def tick() -> None:
        nonlocal due_s
        began_s = time.monotonic()
        if began_s >= due_s:
            look()
            ended_s = time.monotonic()
            due_s = ended_s + max(LOOK_EVERY_S, LOOK_INTERVALS * (ended_s - began_s))

    try:
        yield tick
    finally:
        try:
            look()
        except SetupError as error:
            log.warning("%s", error)
        webhook.close()


class Webhook:
    """Posts JSON to one URL, in order, from a thread, so that a slow receiver blocks nobody.

    The URL may hold a secret, as Slack's do: only its host is logged, and no redirect is followed.
    """

    def __init__(
        self, url: str, *, first_wait_s: float = FIRST_WAIT_S, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Raise SetupError where the URL is not http(s)."""
        try:
            parts = urlsplit(url)
            self._host = parts.hostname or ""
        except ValueError:
            self._host = ""
        if not self._host or parts.scheme not in ("http", "https"):
            raise SetupError(
                "XSWEEP_WEBHOOK is not an http:// or https:// URL: correct or unset it"
            )
        self._url = url
        self._first_wait_s, self._timeout_s = first_wait_s, timeout_s
        self._opener = urllib.request.build_opener(_NoRedirect, _Http, _Https)
        self._messages = queue.Queue[tuple[dict[str, Any], Done] | None](MOST_WAITING)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def post(self, content: dict[str, Any], done: Done = lambda delivered: None) -> bool:
        """Queue a message and return True; drop it and return False if too many are waiting."""
        try:
            self._messages.put_nowait((content, done))
        except queue.Full:
            log.warning("webhook   %s: too many messages are waiting; one is dropped", self._host)
            return False
        return True

    def close(self, grace_s: float = TIMEOUT_S) -> None:
        """Send waiting messages, without pauses between tries, for at most `grace_s`."""
        self._closing.set()
        until_s = time.monotonic() + grace_s
        with suppress(queue.Full):
            self._messages.put(None, timeout=grace_s)
        self._thread.join(max(0.0, until_s - time.monotonic()))

    def _work(self) -> None:
        while message := self._messages.get():
            content, done = message
            try:
                done(self._deliver(content))
            except Exception as error:  # the next message must be sent all the same
                log.warning("webhook   %s", error)

    def _deliver(self, content: dict[str, Any]) -> bool:
        request = urllib.request.Request(  # noqa: S310  (its scheme was checked)
            self._url,
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json", "User-Agent": f"xsweep/{__version__}"},
        )
        for number in range(TRIES):
            if number:
                self._closing.wait(self._first_wait_s * 4 ** (number - 1))
            try:
                with self._opener.open(request, timeout=self._timeout_s):
                    return True
            except (OSError, HTTPException, ValueError) as error:
                why = _reason(error)
                log.warning("webhook   %s: %s (try %d of %d)", self._host, why, number + 1, TRIES)
        return False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class _Http(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_brief, HTTPConnection), request)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_brief, HTTPSConnection), request)


def _brief(kind: type[HTTPConnection], *args: Any, **options: Any) -> HTTPConnection:
    """A connection that is shut after two timeouts: sockets count one anew from each byte."""
    connection = kind(*args, **options)

    def shut() -> None:
        with suppress(OSError):
            if connection.sock:
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    timer = threading.Timer(2 * options["timeout"], shut)
    timer.daemon = True
    timer.start()
    return connection


def _reason(error: Exception) -> str:
    """Describe an error without the URL, which its own message may contain."""
    if isinstance(error, HTTPError):
        return f"it answers {error.code}"
    cause = error.reason if isinstance(error, URLError) else error
    return getattr(cause, "strerror", None) or type(cause).__name__


class Announcer:
    """Looks at the job table and posts what is new."""

    def __init__(self, engine: Engine, webhook: Webhook) -> None:
        self.engine, self.webhook = engine, webhook
        self.seen = last_event(engine)
        self.pending: dict[int, bool] = {}
        """By sweep: True while its end is still to be announced."""

    def look(self) -> None:
        """Post what has happened since the last look."""
        for sweep in sweeps(self.engine):
            self._look_at(sweep)
        newest = last_event(self.engine)
        if newest == self.seen:
            return
        found = [each for each in failures_since(self.engine, self.seen) if each.event <= newest]
        self.seen = newest
        if failed := [each for each in found if each.next == "failed"]:
            self.webhook.post(failed_message(failed))

    def _look_at(self, sweep: SweepStatus) -> None:
        if sweep.id not in self.pending:
            kinds = [event.kind for event in history(self.engine, sweep_id=sweep.id)]
            latest = [kind for kind in kinds if kind in (WATCHED, ANNOUNCED)][-1:]
            self.pending[sweep.id] = latest == [WATCHED]
        is_open = count(sweep, OPEN) > 0 and sweep.state != "cancelled"
        if is_open and not self.pending[sweep.id]:
            self.pending[sweep.id] = True
            record_event(self.engine, WATCHED, sweep_id=sweep.id)
        elif not is_open and self.pending[sweep.id]:
            self.pending[sweep.id] = False

            def done(delivered: bool) -> None:
                record_event(self.engine, ANNOUNCED, sweep_id=sweep.id, delivered=delivered)

            self.webhook.post(finished_message(sweep), done)


def finished_message(sweep: SweepStatus) -> dict[str, Any]:
    """Return the message of a sweep's end: `small finished: 18 of 19 jobs done, 1 failed`."""
    states = sum(map(Counter, sweep.counts.values()), Counter[str]())
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
    """Return the message of failures: `2 jobs failed: train L6 infonce s1: NAN: the loss …`."""
    jobs = [
        {
            "job_id": each.job_id,
            "name": each.name,
            "kind": each.kind,
            "failure": each.failure,
            "reason": each.reason.strip().partition("\n")[0][:REASON_CHARACTERS],
            "sweeps": list(each.sweeps),
        }
        for each in failed[:MOST_JOBS]
    ]
    lines = "; ".join(f"{job['name']}: {job['failure']}: {job['reason']}" for job in jobs[:3])
    more = "; …" if len(failed) > 3 else ""
    return {
        "schema": SCHEMA,
        "event": "failed",
        "jobs": jobs,
        "more": len(failed) - len(jobs),
        "text": f"{counted(len(failed), 'job')} failed: {lines}{more}",
    }
