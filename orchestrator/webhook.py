"""Messages to somebody's URL, from a thread of their own: nobody waits for a slow receiver.

The URL may hold a secret (Slack's do): only its host is ever logged, and no redirect is followed,
which would hand the message to another host.
"""

import json
import logging
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from xsweep import SetupError, __version__

log = logging.getLogger("xsweep")

TRIES = 3
TIMEOUT_S = 10.0
FIRST_WAIT_S = 2.0
"""Before the second try; each further wait is four times as long."""
WAITING = 100
"""Messages that may wait for a slow receiver; further ones are dropped."""

Done = Callable[[bool], None]


class _Message(NamedTuple):
    content: dict[str, Any]
    done: Done


class Webhook:
    """Posts JSON to one URL, in order, each message up to `TRIES` times."""

    def __init__(self, url: str, *, first_wait_s: float = FIRST_WAIT_S) -> None:
        """Raises SetupError for what is no http(s) URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SetupError("XSWEEP_WEBHOOK is no http:// or https:// URL: correct or unset it")
        self._url, self.host = url, parts.hostname
        self._first_wait_s = first_wait_s
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._messages: queue.Queue[_Message | None] = queue.Queue(WAITING)
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def post(self, content: dict[str, Any], done: Done = lambda delivered: None) -> bool:
        """Take a message; never waits. `done` is called in the thread when its fate is known.

        False where too many wait already: it is dropped.
        """
        try:
            self._messages.put_nowait(_Message(content, done))
        except queue.Full:
            log.warning("webhook   %s: too many messages wait, one is dropped", self.host)
            return False
        return True

    def close(self, grace_s: float = TIMEOUT_S) -> None:
        """Let what waits be sent, without waiting between tries, for at most so long."""
        self._leaving.set()
        try:
            self._messages.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(grace_s)

    def _work(self) -> None:
        while (message := self._messages.get()) is not None:
            delivered = self._deliver(message.content)
            try:
                message.done(delivered)
            except Exception as error:
                # whatever the listener does, the next message is to be sent
                log.warning("webhook   %s", error)

    def _deliver(self, content: dict[str, Any]) -> bool:
        for number in range(TRIES):
            if number:
                self._leaving.wait(self._first_wait_s * 4 ** (number - 1))
            why = self._post(content)
            if why is None:
                return True
            log.warning("webhook   %s: %s (try %d of %d)", self.host, why, number + 1, TRIES)
        return False

    def _post(self, content: dict[str, Any]) -> str | None:
        """What went wrong, in words without the URL; None if it was taken."""
        request = urllib.request.Request(  # noqa: S310  (its scheme was checked)
            self._url,
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json", "User-Agent": f"xsweep/{__version__}"},
            method="POST",
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_S):
                return None
        except urllib.error.HTTPError as error:
            return f"it answers {error.code}"
        except urllib.error.URLError as error:
            return getattr(error.reason, "strerror", None) or type(error.reason).__name__
        except (OSError, ValueError) as error:
            return getattr(error, "strerror", None) or type(error).__name__


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
