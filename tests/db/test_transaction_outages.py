"""The database goes away for a while, for all or for one: nothing is lost but the time."""

import time

import pytest
from chaos import CHAOS, account
from claimers import reap, start, work
from crowds import accepted, join, let_leases_run_out, to_do
from job_table import counts, finish, new_job, states, study, submit, take
from postgresql import run_server

import xsweep.db.engine
import xsweep.db.transaction
from xsweep.db import jobs
from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.db.events import history
from xsweep.errors import SetupError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900 if CHAOS else 300)]


@pytest.fixture
def own_server():
    """A PostgreSQL server that nobody else minds being killed; its URL and how to restart it."""
    with run_server() as server:
        yield server


def test_workers_ride_through_restarts_of_the_server(own_server, tell):
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
    # a claim whose answer was lost is held by nobody: its lease ends it
    for n in range(len(hired)):
        let_leases_run_out(engine, f"worker {n}")
        reap(url, [f"worker {n}"])
    work(url, "last", 0)
    tell(account(engine, "server killed and restarted", restarts, restarted_s))
    assert counts(engine) == {"done": 2 + 3 * seeds}
    assert set(accepted(engine).values()) == {1}
    assert check(engine) == []


def test_after_a_restart_of_the_server_the_next_look_at_it_works(own_server):
    url, control = own_server
    engine = connect(url, create=True)
    submit(engine, [new_job("train")])
    control("restart")
    assert states(engine) == {"train": "ready"}
    control("restart")
    assert take(engine).name == "train"


def test_a_server_that_stays_away_is_told_when_patience_ends(own_server, monkeypatch):
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
    """A line to a database that can be cut."""
    from proxy import Line

    line = Line(postgresql_url)
    yield line
    line.close()


def test_a_line_that_is_cut_for_a_while_changes_nothing_but_the_time(
    line, postgresql_url, monkeypatch
):
    engine = connect(line.url)
    submit(engine, [new_job("a"), new_job("b", "a")])
    claim = take(engine)
    line.cut()
    monkeypatch.setattr(xsweep.db.transaction, "PATIENCE_S", 0.2)
    with pytest.raises(SetupError, match="check that the server runs"):
        jobs.renew(engine, [claim.lease], lease_s=600)
    assert jobs.expired(connect(postgresql_url)) == [], "nobody is dead because we cannot see"
    line.mend()
    assert jobs.renew(engine, [claim.lease], lease_s=600) == {claim.lease}
    assert finish(engine, claim)
    assert states(engine) == {"a": "done", "b": "ready"}
    assert check(engine) == []


def test_an_answer_that_was_lost_with_the_line_is_given_again(line, monkeypatch):
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
    assert committed, "the first answer was lost"
    assert line.passed == 2
    assert accepted(engine) == {str(claim.job_id): 1}
    assert check(engine) == []
