"""The database is away for a while, for all or for one process: nothing is lost."""

import re
import time
from types import SimpleNamespace

import pytest
from chaos import CHAOS, account
from claimers import reap, start, work
from crowds import accepted, join, let_leases_run_out, to_do
from job_table import counts, finish, new_job, states, study, submit, take
from postgresql import administer, run_server
from sqlalchemy import make_url

import xsweep.db.engine
import xsweep.db.transaction
from xsweep.db import jobs
from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.db.events import history
from xsweep.errors import SetupError

pytestmark = [pytest.mark.slow(2), pytest.mark.timeout(900 if CHAOS else 300)]


@pytest.fixture
def own_server():
    """A PostgreSQL server of this test alone: its URL and a function that restarts it."""
    with run_server() as server:
        yield server


def test_workers_continue_after_restarts_of_the_server(own_server, report_account):
    url, control = own_server
    engine = connect(url, create=True)
    portion, restarts = (40, 8) if CHAOS else (25, 2)
    seeds = portion
    submit(engine, study(seeds=range(seeds)))
    crowd, hired, restarted_s = [], [], []

    def hire() -> None:
        owner = f"worker {len(hired)}"
        process = start(work, url, owner, len(hired))
        while process.is_alive() and owner not in {event.owner for event in history(engine)}:
            process.join(0.01)  # only verbs are patient, opening is not
        crowd.append(process)
        hired.append(process)

    for _ in range(restarts):
        seeds += portion
        submit(engine, study(seeds=range(seeds)))
        crowd = [process for process in crowd if process.is_alive()]
        while len(crowd) < 3:
            hire()
        crowd[0].join(0.4)
        began_s = time.monotonic()
        control("restart")
        events = len(history(engine, latest=10**6))
        while len(history(engine, latest=10**6)) == events and to_do(engine):
            crowd[0].join(0.01)  # until the first of them works again
        restarted_s.append(time.monotonic() - began_s)
    join(hired)
    assert {process.exitcode for process in hired} == {0}
    # no process knows of a claim whose reply was lost: its lease expires
    for n in range(len(hired)):
        let_leases_run_out(engine, f"worker {n}")
        reap(url, [f"worker {n}"])
    work(url, "last", 0)
    report_account(account(engine, "server killed and restarted", restarts, restarted_s))
    assert counts(engine) == {"done": 2 + 3 * seeds}
    assert set(accepted(engine).values()) == {1}
    assert check(engine) == []


def test_the_first_read_after_a_restart_of_the_server_works(own_server):
    url, control = own_server
    engine = connect(url, create=True)
    submit(engine, [new_job("train")])
    control("restart")
    assert states(engine) == {"train": "ready"}
    control("restart")
    assert take(engine).name == "train"


def test_a_server_that_stays_away_raises_an_error_when_patience_ends(own_server, monkeypatch):
    url, control = own_server
    engine = connect(url, create=True)
    submit(engine, [new_job("train")])
    control("stop")
    monkeypatch.setattr(xsweep.db.transaction, "PATIENCE_S", 0.3)
    for verb in (lambda: take(engine), lambda: jobs.running(engine)):
        with pytest.raises(SetupError, match="check that the server runs and that XSWEEP_DB"):
            verb()
    control("restart")
    assert take(engine).name == "train"


@pytest.fixture
def line(postgresql_url):
    """A connection to a database that can be cut."""
    from proxy import Line

    line = Line(postgresql_url)
    yield line
    line.close()


def test_a_connection_cut_for_a_while_loses_nothing(line, postgresql_url, monkeypatch):
    engine = connect(line.url)
    submit(engine, [new_job("a"), new_job("b", "a")])
    claim = take(engine)
    line.cut()
    monkeypatch.setattr(xsweep.db.transaction, "PATIENCE_S", 0.2)
    with pytest.raises(SetupError, match="check that the server runs"):
        jobs.renew(engine, [claim.lease], lease_s=600)
    assert jobs.expired(connect(postgresql_url)) == [], "a cut connection expires no lease"
    line.mend()
    assert jobs.renew(engine, [claim.lease], lease_s=600) == {claim.lease}
    assert finish(engine, claim)
    assert states(engine) == {"a": "done", "b": "ready"}
    assert check(engine) == []


def test_a_server_that_is_read_only_for_a_while_loses_nothing(postgresql_url):
    engine = connect(postgresql_url)
    submit(engine, [new_job("a"), new_job("b", "a")])
    claim = take(engine)
    database = make_url(postgresql_url).database
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    administer(postgresql_url, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    server = postgresql_url.replace(f"/{database}?", "/postgres?")
    administer(server, cut)  # as a standby that takes over would
    for _ in range(2):
        with pytest.raises(SetupError, match="connect to the primary server"):
            jobs.renew(engine, [claim.lease], lease_s=600)
    administer(server, f"ALTER DATABASE {database} RESET default_transaction_read_only")
    assert jobs.renew(engine, [claim.lease], lease_s=600) == {claim.lease}
    assert finish(engine, claim)
    assert states(engine) == {"a": "done", "b": "ready"}
    assert check(engine) == []
    engine.dispose()


def test_a_process_asks_a_lost_server_ever_more_seldom_at_least_every_two_seconds(
    line, monkeypatch, caplog
):
    engine = connect(line.url)
    line.cut()
    now_s = 0.0

    def sleep(wait_s):
        nonlocal now_s
        now_s += wait_s

    clock = SimpleNamespace(monotonic=lambda: now_s, sleep=sleep)
    monkeypatch.setattr(xsweep.db.transaction, "time", clock)
    with pytest.raises(SetupError, match="check that the server runs"):
        jobs.running(engine)
    waits_s = [float(re.search(r"next try in (.*) s", line)[1]) for line in caplog.messages]
    assert waits_s[:6] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6]
    assert set(waits_s[6:]) == {2.0}
    assert 28 < now_s <= 30


def test_a_reply_lost_with_the_connection_is_repeated(line, monkeypatch):
    engine = connect(line.url)
    submit(engine, [new_job("a")])
    claim = take(engine)
    committed = []

    def cut_after_commit(connection):
        if not committed:
            committed.append(connection)
            raw = connection.connection.driver_connection
            raw.commit()
            line.cut()
            line.mend()
            raw.execute("SELECT 'the answer'")

    xsweep.db.engine.event.listen(engine, "commit", cut_after_commit)
    assert finish(engine, claim)
    assert committed, "the first reply was lost"
    assert line.passed == 2
    assert accepted(engine) == {str(claim.job_id): 1}
    assert check(engine) == []
