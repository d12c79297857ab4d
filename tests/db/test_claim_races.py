"""Many concurrent processes, killed at random: no job is lost, none is done twice.

XSWEEP_CHAOS=1 runs the full numbers of jobs, processes and kills.
"""

import multiprocessing
import os
import random
import signal
import threading
import time

import pytest
from chaos import CHAOS, account, clock, recoveries_s
from claimers import live_elsewhen, meddle, reap, sleepwalk, start, submit_to, work
from crowds import PATIENCE_S, accepted, join, let_leases_run_out, to_do
from job_table import counts, expire, finish, new_job, states, study, submit, take
from sqlalchemy import text

from xsweep.db import jobs
from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.db.events import history
from xsweep.db.status import summary
from xsweep.db.submit import insert_sweep

pytestmark = [pytest.mark.slow(2), pytest.mark.timeout(900 if CHAOS else 300)]


def test_many_processes_claim_every_job_once(url, engine, report_account):
    jobs_count, processes = (2_000, 16) if CHAOS else (160, 8)
    submit(engine, [new_job(f"job {n}") for n in range(jobs_count)])
    crowd = [start(work, url, f"worker {n}", n) for n in range(processes)]
    join(crowd)
    assert [process.exitcode for process in crowd] == [0] * processes
    report_account(account(engine, f"{processes} processes claim"))
    assert counts(engine) == {"done": jobs_count}
    assert set(accepted(engine).values()) == {1}
    assert check(engine) == []


def test_killed_workers_and_reapers_lose_and_duplicate_no_result(url, engine, report_account):
    kills, portion = (50, 20) if CHAOS else (6, 8)
    seeds = portion
    submit(engine, study(seeds=range(seeds)))
    chance = random.Random(7)
    alive, dead, started, killed_at = [], [], 0, {}
    while len(killed_at) < kills or counts(engine).get("done", 0) < 2 + 3 * seeds:
        while len(alive) < 3:
            owner = f"worker {started}"
            alive.append((owner, start(work, url, owner, started)))
            started += 1
        owner, victim = alive.pop(0)
        if len(killed_at) < kills:
            if to_do(engine) < portion:  # no worker may be idle before the last kill
                seeds += portion
                submit(engine, study(seeds=range(seeds)))
            victim.join(chance.uniform(0.02, 0.3))
            if victim.is_alive():
                victim.kill()
                killed_at[owner] = clock(engine)
                reaper = start(reap, url, list(dead))
                if chance.random() < 0.5:
                    reaper.join(chance.uniform(0, 0.1))
                    reaper.kill()
                reaper.join(PATIENCE_S)
        victim.join(PATIENCE_S)
        dead.append(owner)
        let_leases_run_out(engine, owner)
        reap(url, dead)
        assert started < 20 * kills, "no progress"
    join(process for _, process in alive)
    times_s = recoveries_s(engine, killed_at)
    report_account(account(engine, "workers and reapers, kill -9", len(killed_at), times_s))
    assert counts(engine) == {"done": 2 + 3 * seeds}
    assert set(accepted(engine).values()) == {1}
    assert check(engine) == []


def test_cancels_and_retries_while_workers_are_killed_lose_no_job(url, engine, report_account):
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
    report_account(account(engine, "people cancel, pause, retry; workers, kill -9", kills, times_s))
    assert counts(engine) == {"done": len(grid)}
    assert set(accepted(engine).values()) == {1}
    assert check(engine) == []


def test_a_process_stopped_past_its_lease_cannot_finish(url, engine, report_account):
    submit(engine, [new_job("train")])
    ours, theirs = multiprocessing.Pipe()
    sleeper = start(sleepwalk, url, "sleeper", theirs)
    claim = ours.recv()
    os.kill(sleeper.pid, signal.SIGSTOP)
    expire(engine, claim)
    assert jobs.requeue_expired(engine, claim.lease)
    assert finish(engine, take(engine, "awake"), folder="store/awake")
    os.kill(sleeper.pid, signal.SIGCONT)
    ours.send("go on")
    assert ours.recv() is False
    join([sleeper])
    report_account(account(engine, "SIGSTOP past the lease, SIGCONT", 1))
    assert jobs.explain(engine, "train").folder == "store/awake"
    assert check(engine) == []


@pytest.mark.parametrize("skew_s", [-600, 600])
def test_processes_whose_clocks_are_ten_minutes_off_agree_on_leases(url, engine, skew_s):
    submit(engine, [new_job("ours"), new_job("theirs")])
    ours = take(engine, "right")
    stranger, theirs = multiprocessing.Pipe()
    crowd = [start(live_elsewhen, url, "wrong", skew_s, theirs)]
    claim, told_s, overdue = stranger.recv()
    assert told_s == pytest.approx(time.time() + skew_s, abs=60), "its clock is off"
    assert overdue == [], "no lease has expired for it"
    assert jobs.expired(engine) == [], "nor for us"
    left_s = {held.owner: held.lease_left_s for held in summary(engine).running}
    assert all(30 < left <= 60 for left in left_s.values()), left_s
    expire(engine, ours)
    stranger.send("go on")
    assert stranger.recv() == ["ours"], "an expired lease has expired for all"
    join(crowd)
    assert finish(engine, claim)
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
    """The acceptance waits for the submission, which began first, and must see its new job."""
    engine = connect(postgresql_url)
    submit(engine, [new_job("parent")])
    claim = take(engine)
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with engine.begin() as connection:
        insert_sweep(connection, "study", "", [new_job("parent"), new_job("child", "parent")])
        acceptance = threading.Thread(target=finish, args=(engine, claim))
        acceptance.start()
        while not connection.scalar(waits):
            acceptance.join(0.01)
            assert acceptance.is_alive(), "it must wait"
    acceptance.join()
    assert states(engine) == {"parent": "done", "child": "ready"}
    assert check(engine) == []
