"""A real HTTP server receives the webhook's messages; a bad one blocks nobody."""

import logging
import socketserver
import threading
import time
from collections.abc import Iterator
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


def test_a_receiver_that_does_not_speak_http_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    class Garbage(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"garbage\r\n\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Garbage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{SECRET}"
        assert not delivered(Webhook(url, first_wait_s=0.01), {})
        server.shutdown()
    assert "127.0.0.1: BadStatusLine (try 3 of 3)" in caplog.text
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


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc/passwd", "host/x", "http:///x"])
def test_an_invalid_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(SetupError, match="XSWEEP_WEBHOOK is not an http") as caught:
        Webhook(url)
    assert url not in str(caught.value)
