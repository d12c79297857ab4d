"""Many processes at once, killed at random: nothing is lost, nothing is done twice.

XSWEEP_CHAOS=1 takes the numbers of jobs, processes and kills that the promises speak of.
"""

import multiprocessing
import os
import random
import signal
import time
from collections import Counter

import pytest
from claimers import reap, sleepwalk, start, submit_to, work
from job_table import counts, expire, finish, hold, new_job, states, study, submit, take
from sqlalchemy import Engine, text

import db.transactions
from db import jobs
from db.check import check
from db.engine import connect
from db.events import history
from xsweep import SetupError

CHAOS = bool(os.environ.get("XSWEEP_CHAOS"))
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


def test_many_processes_claim_every_job_once(url, engine):
    jobs_count, processes = (2_000, 16) if CHAOS else (160, 8)
    submit(engine, [new_job(f"job {n}") for n in range(jobs_count)])
    crowd = [start(work, url, f"worker {n}", n) for n in range(processes)]
    join(crowd)
    assert [process.exitcode for process in crowd] == [0] * processes
    assert counts(engine) == {"done": jobs_count}
    assert set(accepted(engine).values()) == {1}
    assert check(engine) == []


def test_workers_and_reapers_killed_at_random_lose_and_double_nothing(url, engine):
    seeds, kills = (range(60), 50) if CHAOS else (range(8), 6)
    grid = study(seeds=seeds)
    submit(engine, grid)
    chance = random.Random(7)
    alive, dead, started = [], [], 0
    while counts(engine).get("done", 0) < len(grid):
        while len(alive) < 3:
            owner = f"worker {started}"
            alive.append((owner, start(work, url, owner, started)))
            started += 1
        if len(dead) < kills:
            alive[0][1].join(chance.uniform(0.02, 0.3))
            alive[0][1].kill()
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
    assert counts(engine) == {"done": len(grid)}
    assert set(accepted(engine).values()) == {1}
    assert check(engine) == []


def test_a_sleeper_that_wakes_up_after_its_lease_cannot_finish(url, engine):
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
    assert jobs.explain(engine, "train").folder == "store/awake"
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


def test_workers_ride_through_restarts_of_the_server(own_server):
    url, control = own_server
    engine = connect(url, create=True)
    seeds, restarts = (range(160), 8) if CHAOS else (range(25), 2)
    grid = study(seeds=seeds)
    submit(engine, grid)
    crowd = [start(work, url, f"worker {n}", n) for n in range(3)]
    connected: set[str | None] = set()
    while len(connected) < len(crowd) and any(process.is_alive() for process in crowd):
        crowd[0].join(0.01)  # only verbs are patient, opening is not
        connected = {event.owner for event in history(engine) if event.kind == "claimed"}
    for _ in range(restarts):
        crowd[0].join(0.4)
        control("restart")
    join(crowd)
    assert [process.exitcode for process in crowd] == [0] * len(crowd)
    # a claim whose answer was lost is held by nobody: its lease ends it
    for n in range(3):
        let_leases_run_out(engine, f"worker {n}")
        reap(url, [f"worker {n}"])
    work(url, "last", 0)
    assert counts(engine) == {"done": len(grid)}
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
