"""Web pages of sweeps: a read-only HTTP server for browsers, loopback, GET and HEAD only.

A page of another site in the same browser can reach loopback addresses (DNS rebinding), but its
requests name another host and are refused.
"""

import gzip
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
HOSTS = (LOOPBACK, "localhost", "[::1]")
IDLE_S = 10.0
"""Time within which a client must send its request."""
PAGES_AT_ONCE = 4
"""Pages that are computed at the same time; others wait for their turn."""
TURN_S = 10.0
"""Time that a request waits for its turn."""
RETRY_S = 15
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
HTML = "text/html; charset=utf-8"
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


class Request(NamedTuple):
    """A request: the decoded parts of its path, and its options with all values of each."""

    parts: tuple[str, ...]
    options: Mapping[str, Sequence[str]] = {}

    def get(self, option: str) -> str:
        """The last value of an option; empty where it has none."""
        return self.options.get(option, ("",))[-1]


class Answer(NamedTuple):
    """A complete response."""

    body: str
    type: str = HTML
    status: HTTPStatus = HTTPStatus.OK
    lasting: bool = False
    """The browser may keep it for good: its address changes with its content."""


Respond = Callable[[Request], Answer]


def open_server(respond: Respond, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 at a port, 0 for any free one; `serve_forever` starts it.

    It calls `respond` in one thread per request, in few at the same time; a request that waits too
    long for its turn is answered 503. Raises OSError where the port is in use.
    """
    turns = BoundedSemaphore(PAGES_AT_ONCE)
    handler = type("Handler", (_Handler,), {"respond": staticmethod(respond), "turns": turns})
    return _Server((LOOPBACK, port), handler)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


class _Handler(BaseHTTPRequestHandler):
    respond: Respond
    turns: BoundedSemaphore
    timeout = IDLE_S
    server_version = "xsweep"
    sys_version = ""

    def do_GET(self) -> None:
        assert isinstance(self.server, ThreadingHTTPServer)
        port = self.server.server_port
        if self.headers.get("Host", "").lower() not in {f"{host}:{port}" for host in HOSTS}:
            refusal = "This page answers to 127.0.0.1 and localhost only.\n"
            self._send(Answer(refusal, TEXT, HTTPStatus.MISDIRECTED_REQUEST))
            return
        url = urlsplit(self.path)
        parts = tuple(unquote(part) for part in url.path.split("/") if part)
        if not self.turns.acquire(timeout=TURN_S):
            busy = "Too many pages are asked for at once.\n"
            self._send(Answer(busy, TEXT, HTTPStatus.SERVICE_UNAVAILABLE))
            return
        try:
            answer = type(self).respond(Request(parts, parse_qs(url.query)))
        finally:
            self.turns.release()
        self._send(answer)

    def do_HEAD(self) -> None:
        self.do_GET()

    def __getattr__(self, name: str) -> Callable[[], None]:
        # http.server calls a method per verb; all others are refused here.
        if name.startswith("do_"):
            return self._refuse_verb
        raise AttributeError(name)

    def _refuse_verb(self) -> None:
        self.close_connection = True
        self._send(Answer("Only GET and HEAD.\n", TEXT, HTTPStatus.METHOD_NOT_ALLOWED))

    def _send(self, answer: Answer) -> None:
        headers = {**HEADERS, "Content-Type": answer.type}
        body = answer.body.encode()
        if answer.lasting:
            headers |= {"Cache-Control": "public, max-age=31536000, immutable"}
            if "gzip" in self.headers.get("Accept-Encoding", ""):
                headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
                body = _compressed(answer.body)
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", str(RETRY_S))
        self.send_header("Content-Length", str(len(body)))
        # A browser that closed the connection meanwhile is no error.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        log.debug("%s", format % args)


@cache
def _compressed(body: str) -> bytes:
    return gzip.compress(body.encode(), 6)
