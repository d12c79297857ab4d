"""An HTTP server for one machine's own browser: loopback only, GET only, nothing that writes.

A page of another site that runs in the same browser may reach loopback addresses, too (DNS
rebinding): its requests name another host, and are refused.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

log = logging.getLogger(__name__)


LOOPBACK = "127.0.0.1"


IDLE_S = 10.0
"""How long a client may take to send its request."""


NAMES = ("127.0.0.1", "localhost", "[::1]")


HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


HTML = "text/html; charset=utf-8"


TEXT = "text/plain; charset=utf-8"


class Request(NamedTuple):
    """What was asked for: the parts of the path, decoded, and the last value of each option."""

    parts: tuple[str, ...]
    options: dict[str, str]


class Answer(NamedTuple):
    """A whole answer."""

    body: str
    type: str = HTML
    status: HTTPStatus = HTTPStatus.OK


Respond = Callable[[Request], Answer]


def open_server(respond: Respond, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1, port 0 for any free one; `serve_forever` makes it work.

    `respond` is called in a thread per request. Raises OSError where the port is taken.
    """
    handler = type("Handler", (_Handler,), {"respond": staticmethod(respond)})
    server = ThreadingHTTPServer((LOOPBACK, port), handler)
    server.daemon_threads = True
    return server


class _Handler(BaseHTTPRequestHandler):
    respond: Respond
    timeout = IDLE_S
    server_version = "xsweep"
    sys_version = ""

    def do_GET(self) -> None:
        if not self._is_ours():
            refusal = "This page answers to 127.0.0.1 and localhost only.\n"
            self._send(Answer(refusal, TEXT, HTTPStatus.MISDIRECTED_REQUEST))
            return
        url = urlsplit(self.path)
        parts = tuple(unquote(part) for part in url.path.split("/") if part)
        options = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self._send(type(self).respond(Request(parts, options)))

    def do_HEAD(self) -> None:
        self.do_GET()

    def __getattr__(self, name: str) -> Callable[[], None]:
        # http.server looks for a method per verb; none but the two above is there
        if name.startswith("do_"):
            return self._refuse_verb
        raise AttributeError(name)

    def _refuse_verb(self) -> None:
        self.close_connection = True
        self._send(Answer("Only GET and HEAD.\n", TEXT, HTTPStatus.METHOD_NOT_ALLOWED))

    def _is_ours(self) -> bool:
        assert isinstance(self.server, ThreadingHTTPServer)
        port = self.server.server_port
        host = self.headers.get("Host", "").lower()
        return host in {f"{name}:{port}" for name in NAMES}

    def _send(self, answer: Answer) -> None:
        body = answer.body.encode()
        self.send_response(answer.status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Type", answer.type)
        self.send_header("Content-Length", str(len(body)))
        # A browser that has gone elsewhere meanwhile is no error of ours.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        log.debug("%s", format % args)
