"""Many processes at once, killed at random: nothing is lost, nothing is done twice.

XSWEEP_CHAOS=1 takes the numbers of jobs, processes and kills that the promises speak of.
"""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter

import pytest
from chaos import CHAOS, account, clock, recoveries_s
from claimers import live_elsewhen, meddle, reap, sleepwalk, start, submit_to, work
from job_table import counts, expire, finish, hold, new_job, states, study, submit, take
from sqlalchemy import Engine, text

import db.engine
import db.transactions
from db import jobs
from db.check import check
from db.engine import connect
from db.events import history
from db.submission import add_in
from xsweep import SetupError

PATIENCE_S = 800 if CHAOS else 120
pytestmark = pytest.mark.timeout(900 if CHAOS else 300)


def join(processes) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(max(0.0, give_up_at - time.monotonic()))
        assert process.exitcode is not None, "still running"


def let_leases_run_out(engine: Engine, owner: str) -> None:
    past = text("UPDATE attempt SET lease_until = 1 WHERE owner = :owner AND outcome IS NULL")
    db.transactions.transact(engine, lambda c: c.execute(past, {"owner": owner}))


def accepted(engine: Engine) -> Counter[str]:
    """Acceptances by job, from the history."""
    events = history(engine, latest=1_000_000)
    return Counter(str(event.job_id) for event in events if event.kind == "accepted")


def test_many_processes_claim_every_job_once(url, engine, tell):
    jobs_count, processes = (2_000, 16) if CHAOS else (160, 8)
    submit(engine, [new_job(f"job {n}") for n in range(jobs_count)])
    crowd = [start(work, url, f"worker {n}", n) for n in range(processes)]
    join(crowd)
    assert [process.exitcode for process in crowd] == [0] * processes
    tell(account(engine, f"{processes} processes claim"))
    assert counts(engine) == {"done": jobs_count}
    assert set(accepted(engine).values()) == {1}
    assert check(engine) == []


def test_workers_and_reapers_killed_at_random_lose_and_double_nothing(url, engine, tell):
    seeds, kills = (range(60), 50) if CHAOS else (range(8), 6)
    grid = study(seeds=seeds)
    submit(engine, grid)
    chance = random.Random(7)
    alive, dead, started, killed_at = [], [], 0, {}
    while counts(engine).get("done", 0) < len(grid):
        while len(alive) < 3:
            owner = f"worker {started}"
            alive.append((owner, start(work, url, owner, started)))
            started += 1
        if len(dead) < kills:
            alive[0][1].join(chance.uniform(0.02, 0.3))
            alive[0][1].kill()
            killed_at[alive[0][0]] = clock(engine)
            reaper = start(reap, url, list(dead))
            if chance.random() < 0.5:
                reaper.join(chance.uniform(0, 0.1))
                reaper.kill()
            reaper.join(PATIENCE_S)
        alive[0][1].join(PATIENCE_S)
        owner, _ = alive.pop(0)
        dead.append(owner)
        let_leases_run_out(engine, owner)
        reap(url, dead)
        assert started < 20 * kills, "no progress"
    join(process for _, process in alive)
    times_s = recoveries_s(engine, killed_at)
    tell(account(engine, "workers and reapers, kill -9", len(killed_at), times_s))
    assert counts(engine) == {"done": len(grid)}
    assert set(accepted(engine).values()) == {1}
    assert check(engine) == []


def test_people_who_cancel_pause_and_retry_while_workers_are_killed_lose_nothing(url, engine, tell):
    grid, kills, rounds = study(seeds=range(40 if CHAOS else 6)), 20 if CHAOS else 4, 30
    submit(engine, grid)
    chance = random.Random(3)
    killed_at: dict[str, float] = {}
    people = start(meddle, url, 3, rounds if CHAOS else 8)
    for n in range(kills):
        owner = f"worker {n}"
        victim = start(work, url, owner, n)
        while victim.is_alive() and owner not in {e.owner for e in history(engine)}:
            victim.join(0.02)  # until it holds something
        victim.join(chance.uniform(0, 0.2))
        victim.kill()
        victim.join()
        killed_at[owner] = clock(engine)
        let_leases_run_out(engine, owner)
        reap(url, [owner])
    join([people])
    assert people.exitcode == 0
    assert check(engine) == []
    jobs.retry(engine, sweep="study")
    jobs.resume(engine, "study")
    work(url, "last", 0)
    times_s = recoveries_s(engine, killed_at)
    tell(account(engine, "people cancel, pause, retry; workers, kill -9", kills, times_s))
    assert counts(engine) == {"done": len(grid)}
    assert set(accepted(engine).values()) == {1}
    assert check(engine) == []


def test_a_sleeper_that_wakes_up_after_its_lease_cannot_finish(url, engine, tell):
    submit(engine, [new_job("train")])
    ours, theirs = multiprocessing.Pipe()
    sleeper = start(sleepwalk, url, "sleeper", theirs)
    claim = ours.recv()
    os.kill(sleeper.pid, signal.SIGSTOP)
    expire(engine, claim)
    assert jobs.requeue_expired(engine, **hold(claim), owner="sleeper")
    assert finish(engine, take(engine, "awake"), folder="store/awake")
    os.kill(sleeper.pid, signal.SIGCONT)
    ours.send("go on")
    assert ours.recv() is False
    join([sleeper])
    tell(account(engine, "SIGSTOP past the lease, SIGCONT", 1))
    assert jobs.explain(engine, "train").folder == "store/awake"
    assert check(engine) == []


@pytest.mark.parametrize("skew_s", [-600, 600])
def test_processes_whose_clocks_are_ten_minutes_off_change_nothing(url, engine, skew_s):
    submit(engine, [new_job("ours"), new_job("theirs")])
    ours = take(engine, "right")
    stranger, theirs = multiprocessing.Pipe()
    crowd = [start(live_elsewhen, url, "wrong", skew_s, theirs)]
    claim, told_s, overdue = stranger.recv()
    assert told_s == pytest.approx(time.time() + skew_s, abs=60), "its clock is off"
    assert overdue == [], "no lease has run out for it"
    assert jobs.expired(engine) == [], "nor for us"
    left_s = {held.owner: held.lease_left_s for held in jobs.running(engine)}
    assert all(30 < left <= 60 for left in left_s.values()), left_s
    expire(engine, ours)
    stranger.send("go on")
    assert stranger.recv() == ["ours"], "what ran out has run out for all"
    join(crowd)
    assert finish(engine, claim, owner="wrong")
    assert check(engine) == []


def test_two_submissions_of_one_grid_at_once_add_it_once(url, engine):
    grid = study(seeds=range(40))
    crowd = [start(submit_to, url, grid) for _ in range(4)]
    join(crowd)
    assert [process.exitcode for process in crowd] == [0] * 4
    assert len(states(engine)) == len(grid)
    assert check(engine) == []


def test_submissions_while_others_work_lose_no_child(url, engine):
    submit(engine, study(seeds=[0]))
    crowd = [start(work, url, f"worker {n}", n) for n in range(3)]
    for last in range(2, 14):
        submit(engine, study(seeds=range(last)))
    join(crowd)
    work(url, "last", 0)
    assert counts(engine) == {"done": 2 + 3 * 13}
    assert check(engine) == []


def test_a_child_that_is_added_while_its_parent_is_accepted_is_woken(postgresql_url):
    """The acceptance waits for the submission, which began first, and must see what it added."""
    engine = connect(postgresql_url)
    submit(engine, [new_job("parent")])
    claim = take(engine)
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with engine.begin() as connection:
        add_in(connection, "study", "", [new_job("parent"), new_job("child", "parent")])
        acceptance = threading.Thread(target=finish, args=(engine, claim))
        acceptance.start()
        while not connection.scalar(waits):
            acceptance.join(0.01)
            assert acceptance.is_alive(), "it must wait"
    acceptance.join()
    assert states(engine) == {"parent": "done", "child": "ready"}
    assert check(engine) == []


@pytest.fixture
def own_server(tmp_path_factory):
    """A PostgreSQL server that nobody else minds being killed; its URL and how to restart it."""
    import pgserver
    from pgserver._commands import pg_ctl

    folder = f"/tmp/xsweep-chaos-{os.getpid()}-{tmp_path_factory.getbasetemp().name}"
    server = pgserver.get_server(folder, cleanup_mode="delete")

    def control(*arguments: str) -> None:
        arguments += ("-l", str(server.log))
        pg_ctl(["-w", "-m", "immediate", *arguments], pgdata=server.pgdata, user=server.system_user)

    yield server.get_uri(), control
    control("restart")
    server.cleanup()


def test_workers_ride_through_restarts_of_the_server(own_server, tell):
    url, control = own_server
    engine = connect(url, create=True)
    seeds, restarts = (range(160), 8) if CHAOS else (range(25), 2)
    grid = study(seeds=seeds)
    done = {"done": len(grid)}
    submit(engine, grid)
    crowd = [start(work, url, f"worker {n}", n) for n in range(3)]
    connected: set[str | None] = set()
    while len(connected) < len(crowd) and any(process.is_alive() for process in crowd):
        crowd[0].join(0.01)  # only verbs are patient, opening is not
        connected = {event.owner for event in history(engine) if event.kind == "claimed"}
    restarted_s = []
    for _ in range(restarts):
        crowd[0].join(0.4)
        began_s = time.monotonic()
        control("restart")
        events = len(history(engine, latest=10**6))
        while len(history(engine, latest=10**6)) == events and counts(engine) != done:
            crowd[0].join(0.01)  # until the first of them works again
        restarted_s.append(time.monotonic() - began_s)
    join(crowd)
    assert [process.exitcode for process in crowd] == [0] * len(crowd)
    # a claim whose answer was lost is held by nobody: its lease ends it
    for n in range(3):
        let_leases_run_out(engine, f"worker {n}")
        reap(url, [f"worker {n}"])
    work(url, "last", 0)
    tell(account(engine, "server killed and restarted", restarts, restarted_s))
    assert counts(engine) == done
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
    monkeypatch.setattr(db.transactions, "PATIENCE_S", 0.3)
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
    pair = (claim.job_id, claim.token)
    line.cut()
    monkeypatch.setattr(db.transactions, "PATIENCE_S", 0.2)
    with pytest.raises(SetupError, match="check that the server runs"):
        jobs.renew(engine, owner="alice", held=[pair], lease_s=600)
    assert jobs.expired(connect(postgresql_url)) == [], "nobody is dead because we cannot see"
    line.mend()
    assert jobs.renew(engine, owner="alice", held=[pair], lease_s=600) == {pair}
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

    db.engine.event.listen(engine, "commit", cut_after_commit)
    assert finish(engine, claim)
    assert committed, "the first answer was lost"
    assert line.passed == 2
    assert accepted(engine) == {str(claim.job_id): 1}
    assert check(engine) == []
