"""A real HTTP server receives the webhook's messages; a bad one blocks nobody."""

import gzip
import logging
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from receiver import SECRET, Receiver

from xsweep.errors import SetupError
from xsweep.orchestrator.monitoring.webhook import MOST_WAITING, TRIES, Webhook


@pytest.fixture
def receivers() -> Iterator[Any]:
    made: list[Receiver] = []

    def make(*codes: int) -> Receiver:
        made.append(Receiver(*codes))
        return made[-1]

    yield make
    for each in made:
        each.close()


def delivered(webhook: Webhook, content: dict[str, Any]) -> bool:
    """Post a message; True if it was delivered."""
    known = threading.Event()
    results: list[bool] = []

    def done(was: bool) -> None:
        results.append(was)
        known.set()

    webhook.post(content, done)
    assert known.wait(30)
    return results[0]


def test_messages_arrive_as_json_in_their_order(receivers: Any) -> None:
    receiver = receivers(204)
    webhook = Webhook(receiver.url)
    for number in range(3):
        webhook.post({"number": number, "text": "é <b>"})
    webhook.close()
    assert [body["number"] for body in receiver.bodies] == [0, 1, 2]
    assert receiver.bodies[0]["text"] == "é <b>"


def test_a_refused_message_is_sent_again_until_it_is_taken(receivers: Any) -> None:
    receiver = receivers(500, 503, 200)
    assert delivered(Webhook(receiver.url, first_wait_s=0.01), {"n": 1})
    assert len(receiver.bodies) == 3


def test_a_message_is_given_up_after_three_tries_and_the_next_is_sent(
    receivers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = receivers(500, 500, 500, 200)
    webhook = Webhook(receiver.url, first_wait_s=0.01)
    with caplog.at_level(logging.WARNING, "xsweep"):
        assert not delivered(webhook, {"n": 1})
    assert delivered(webhook, {"n": 2})
    assert [body["n"] for body in receiver.bodies] == [1] * TRIES + [2]
    assert "127.0.0.1: it answers 500 (try 3 of 3)" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("port", ["9", "1"])
def test_a_refused_connection_is_logged_with_the_host_and_no_secret(
    port: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "xsweep"):
        webhook = Webhook(f"http://127.0.0.1:{port}/{SECRET}?token={SECRET}", first_wait_s=0.01)
        assert not delivered(webhook, {})
    assert "127.0.0.1: Connection refused" in caplog.text
    assert SECRET not in caplog.text


def repeat(send: Callable[[bytes], object], part: bytes, pause_s: float = 0.0) -> None:
    """Send a part again and again, for ten seconds at most, until the other side hangs up."""
    until_s = time.monotonic() + 10
    with suppress(OSError):
        while time.monotonic() < until_s:
            send(part)
            time.sleep(pause_s)


OK = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(bytes(10**7))
ANSWERS: dict[str, tuple[Callable[[socket.socket], object], str | None]] = {
    "no HTTP": (lambda s: s.sendall(b"garbage\r\n\r\n"), "BadStatusLine"),
    "nothing": (lambda s: None, "RemoteDisconnected"),
    "a reset": (
        lambda s: (
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
            s.close(),
        ),
        "Connection reset by peer",
    ),
    "an endless line": (lambda s: repeat(s.sendall, b"x" * 4096), "LineTooLong"),
    "endless headers": (lambda s: s.sendall(OK) or repeat(s.sendall, b"a: b\r\n"), "HTTPException"),
    "endless interim answers": (
        lambda s: repeat(s.sendall, b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),
        "",
    ),
    "a byte now and then": (lambda s: repeat(s.sendall, b"H", 0.05), "BadStatusLine"),
    "silence": (lambda s: s.recv(1), "TimeoutError"),
    "an endless body": (
        lambda s: s.sendall(OK + b"\r\n") or repeat(s.sendall, b"x" * 4096),
        None,
    ),
    "a body that unpacks to much": (
        lambda s: s.sendall(OK + b"Content-Encoding: gzip\r\n\r\n" + BOMB),
        None,
    ),
    "a wrong length": (lambda s: s.sendall(OK + b"Content-Length: -5\r\n\r\n"), None),
    "a redirect to itself": (
        lambda s: s.sendall(b"HTTP/1.1 308 Again\r\nLocation: /" + SECRET.encode() + b"\r\n\r\n"),
        "it answers 308",
    ),
}


@contextmanager
def answering(answer: Callable[[socket.socket], object], *, at_once: bool = False) -> Iterator[int]:
    """The port of a server that answers each request so, or each connection."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                received = b"\r\n\r\n}" if at_once else b""
                while b"\r\n\r\n" not in received or not received.endswith(b"}"):
                    received += self.request.recv(4096) or b"\r\n\r\n}"
                answer(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = server.block_on_close = False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize("name", ANSWERS)
def test_no_answer_holds_the_webhook_up_or_shows_the_secret(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer, error = ANSWERS[name]
    with answering(answer) as port, caplog.at_level(logging.DEBUG):
        url = f"http://127.0.0.1:{port}/{SECRET}?token={SECRET}"
        webhook = Webhook(url, first_wait_s=0.01, timeout_s=0.2)
        began_s = time.monotonic()
        assert delivered(webhook, {}) == (error is None)
        assert time.monotonic() - began_s < 5
        webhook.close()
    if error is not None:
        assert f"127.0.0.1: {error}" in caplog.text
        assert f"(try {TRIES} of {TRIES})" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("url", "error"),
    [
        (f"https://127.0.0.1:{{port}}/{SECRET}", "SSL"),  # which the server does not speak
        (f"http://user:{SECRET}@127.0.0.1:{{port}}/", ""),
        (f"http://127.0.0.1:{SECRET}/", "InvalidURL"),
        (f"http://127.0.0.1:{{port}}/ {SECRET}", "InvalidURL"),
        (f"http://127.0.0.1:{{port}}/é{SECRET}", "UnicodeEncodeError"),
        (f"http://{'x' * 70}.example/{SECRET}", ""),
    ],
)
def test_no_error_of_a_url_shows_its_secret(
    url: str, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    at_once = url.startswith("https")
    with answering(ANSWERS["no HTTP"][0], at_once=at_once) as port, caplog.at_level(logging.DEBUG):
        webhook = Webhook(url.replace("{port}", str(port)), first_wait_s=0.01, timeout_s=1)
        assert not delivered(webhook, {})
        webhook.close()
    assert error in caplog.text
    assert f"(try {TRIES} of {TRIES})" in caplog.text
    assert SECRET not in caplog.text


def test_a_proxy_that_refuses_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

    monkeypatch.delenv("no_proxy", raising=False)
    with answering(refuse) as port, caplog.at_level(logging.DEBUG):
        monkeypatch.setenv("http_proxy", f"http://me:{SECRET}@127.0.0.1:{port}")
        assert not delivered(Webhook(f"http://hooks.example/{SECRET}", first_wait_s=0.01), {})
    assert "hooks.example: it answers 407" in caplog.text
    assert SECRET not in caplog.text


def test_a_redirect_is_not_followed(receivers: Any) -> None:
    receiver = receivers(302)
    assert not delivered(Webhook(receiver.url, first_wait_s=0.01), {})
    assert len(receiver.bodies) == TRIES


def test_a_slow_receiver_blocks_nobody_and_excess_messages_are_dropped(
    receivers: Any,
) -> None:
    receiver = receivers(200)
    receiver.gate.clear()
    webhook = Webhook(receiver.url)
    began_s = time.monotonic()
    queued = [webhook.post({"n": number}) for number in range(MOST_WAITING + 20)]
    webhook.close(grace_s=0.05)
    assert time.monotonic() - began_s < 2
    assert MOST_WAITING <= sum(queued) <= MOST_WAITING + 1  # one may be on its way


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "file:///etc/passwd", "host/x", "http:///x", "http://[host/x"]
)
def test_an_invalid_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(SetupError, match="XSWEEP_WEBHOOK is not an http") as caught:
        Webhook(url)
    assert url not in str(caught.value)
