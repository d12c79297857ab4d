import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from job_table import fail, finish, new_job, run_all, study, submit, take
from sqlalchemy import text

import xsweep.db.status
from xsweep.db import controllers, jobs
from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.db.status import groups, list_jobs, outlook, overview, pending_demand, summary
from xsweep.errors import ConfigError


def test_a_summary_counts_every_sweep_by_kind_and_state(engine):
    submit(engine, study(seeds=[1]), name="one")
    submit(engine, study(seeds=[1, 2]), name="two")
    finish(engine, take(engine))
    found = summary(engine)
    assert [(sweep.name, sweep.state, sweep.total) for sweep in found.sweeps] == [
        ("one", "active", 5),
        ("two", "active", 8),
    ]
    assert found.sweeps[1].counts == {
        "prepare": {"done": 1, "ready": 1},
        "train": {"ready": 2},
        "evaluate": {"waiting": 4},
    }
    assert [sweep.name for sweep in summary(engine, "two").sweeps] == ["two"]
    with pytest.raises(ConfigError, match="no sweep 'three'"):
        summary(engine, "three")


def test_a_summary_lists_running_jobs_failures_and_mean_durations(engine):
    submit(engine, [new_job("a"), new_job("b"), new_job("c"), new_job("d", kind="evaluate")])
    trainings = jobs.claim(engine, owner="alice", limit=3, lease_s=60, kinds=["train"])
    failed, done, runs = trainings
    fail(engine, failed, "DATA", reason="wrong checksum")
    finish(engine, done)
    with engine.begin() as connection:
        change = "UPDATE attempt SET claimed_at = ended_at - 12.5 WHERE outcome = 'done'"
        connection.execute(text(change))
    controllers.register(engine, owner="alice", host="h", pid=7, dashboard_url="http://127.0.0.1")
    found = summary(engine)
    assert found.mean_s == {"train": pytest.approx(12.5)}
    assert [(row.job_id, row.owner) for row in found.running] == [(runs.job_id, "alice")]
    assert 0 <= found.running[0].since_s < 60
    assert [(row.name, row.failure, row.reason) for row in found.failures] == [
        ("a", "DATA", "wrong checksum")
    ]
    assert [controller.pid for controller in found.controllers] == [7]
    assert 0 <= found.oldest_ready_s < 60
    assert json.loads(json.dumps(asdict(found)))["mean_s"] == found.mean_s


def test_a_summary_has_planned_costs_and_their_measured_pace(engine):
    submit(engine, [new_job("a", cost=10), new_job("b", cost=30), new_job("c", kind="evaluate")])
    finish(engine, take(engine, kinds=["train"]))  # b: 30 planned seconds took 15
    with engine.begin() as connection:
        connection.execute(text("UPDATE attempt SET claimed_at = ended_at - 15"))
    found = summary(engine)
    assert found.sweeps[0].cost_s == {
        "train": {"done": 30, "ready": 10},
        "evaluate": {"ready": 1},
    }
    assert found.pace == {"train": pytest.approx(0.5)}


def test_jobs_are_listed_by_sweep_state_and_kind(engine):
    submit(engine, study(seeds=[1]), name="one")
    submit(engine, [new_job("x")], name="two")
    fail(engine, take(engine), "CONFIG")
    assert [row.name for row in list_jobs(engine, "two")] == ["x"]
    assert [row.name for row in list_jobs(engine, state="failed")] == ["tokens"]
    assert {row.name for row in list_jobs(engine, "one", state="skipped", kind="train")} == {
        "train s1"
    }
    assert len(list_jobs(engine, limit=2)) == 2


def test_the_outlook_is_idle_when_no_job_can_change_by_itself(engine):
    submit(engine, [new_job("a"), new_job("b", "a"), new_job("c")])
    now = outlook(engine)
    assert (now.claimable, now.running, now.total, now.idle) == (2, 0, 3, False)
    fail(engine, take(engine), "INFRA", retry_after_s=100)
    now = outlook(engine)
    assert (now.claimable, now.resting) == (1, 1)
    run_all(engine)
    assert not outlook(engine).idle
    jobs.cancel(engine, sweep="study")
    assert outlook(engine).idle


def test_claimable_jobs_are_counted_by_their_requested_resources(engine):
    card, core = {"gpus": 1, "labels": {"zone": "eu"}}, {"cpus": 1}
    grid = [
        new_job("a", resources=core),
        new_job("b", "a", resources=card),
        new_job("c", resources=card, cost=5),
        new_job("d", resources=card),
        new_job("e", kind="evaluate", resources=core),
        new_job("f", resources=core),
    ]
    submit(engine, grid)
    # b waits for a; c comes first by its cost, then a by the chain behind it.
    assert pending_demand(engine) == [("train", card, 2), ("train", core, 2), ("evaluate", core, 1)]
    fail(engine, take(engine, kinds=["train"]), "INFRA", retry_after_s=100)
    assert pending_demand(engine) == [("train", core, 2), ("train", card, 1), ("evaluate", core, 1)]
    jobs.pause(engine, "study")
    assert pending_demand(engine) == []


def test_an_overview_has_states_labels_and_means_of_one_sweep(engine):
    submit(engine, study(seeds=[1]))
    submit(engine, study(seeds=[2]), name="another")
    for _ in range(3):
        finish(engine, take(engine))  # tokens, candidates, and one of the trainings
    scores = {"nDCG@10": {"a": 0.25, "b": 0.75}, "RR@10": {"a": 1.0, "b": 0.5}}
    evaluated = take(engine, kinds=["evaluate"])
    finish(engine, evaluated, scores=scores)
    runs = take(engine, kinds=["evaluate"])
    seed = int(evaluated.name.split()[1][1:])
    name = {1: "study", 2: "another"}[seed]
    found = {place.job_id: place for place in overview(engine, name)}
    assert len(found) == 5
    assert found[evaluated.job_id].means == {"nDCG@10": 0.5, "RR@10": 0.75}
    assert found[evaluated.job_id].labels["seed"] == seed
    assert found[runs.job_id].state == "running"
    with pytest.raises(ConfigError, match="no sweep 'none'"):
        overview(engine, "none")


def test_jobs_of_a_sweep_are_grouped_over_their_seeds(engine):
    submit(engine, study(seeds=[1]), name="another")
    submit(engine, study(seeds=[1, 2]))
    while claims := jobs.claim(engine, owner="alice", limit=1, lease_s=60):
        [claim] = claims
        if claim.name == "evaluate s2 dl20":
            fail(engine, claim, "DATA")
            continue
        seed = float(claim.name[10]) if claim.kind == "evaluate" else 0.0
        finish(engine, claim, scores={"AP": {"a": seed, "b": 4.0}} if seed else {})
    known = {job.name: job.job_id for job in list_jobs(engine, "study")}

    def members(*names):
        seeds = (re.search(r"evaluate s(\d)", name) for name in names)
        return [(known[n], seed[1] if seed else n) for n, seed in zip(names, seeds, strict=True)]

    found = groups(engine, "study")
    assert [(group.kind, group.state, group.failure, group.jobs) for group in found] == [
        ("prepare", "done", None, members("tokens", "candidates")),
        ("train", "done", None, members("train s1", "train s2")),
        ("evaluate", "done", None, members("evaluate s1 dl19", "evaluate s2 dl19")),
        ("evaluate", "done", None, members("evaluate s1 dl20")),
        ("evaluate", "failed", "DATA", members("evaluate s2 dl20")),
    ]
    assert [dict(group.means) for group in found[2:]] == [{"AP": 2.5 + 3.0}, {"AP": 2.5}, {}]
    assert found[2].labels == {"collection": "dl19"}
    with pytest.raises(ConfigError, match="no sweep 'none'"):
        groups(engine, "none")


def test_folding_the_tally_keeps_its_counts(engine, monkeypatch):
    submit(engine, study(seeds=[1]), name="one")
    submit(engine, study(seeds=[1, 2]), name="two")
    controllers.register(engine, owner="alice", host="h", pid=1)
    for _ in range(3):
        finish(engine, take(engine))
        before = summary(engine).sweeps
        monkeypatch.setattr(xsweep.db.status, "FOLD_ROWS", 1)
        assert controllers.heartbeat(engine, "alice")
        assert summary(engine).sweeps == before
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT sweep_id, kind, state FROM tally")).all()
        assert len(rows) == len(set(rows))
    assert check(engine) == []


@pytest.mark.slow(0.1)
def test_postgresql_counts_the_jobs_of_a_statement_together(postgresql_url):
    engine = connect(postgresql_url)
    submit(engine, study(seeds=range(20)))
    tally = text("SELECT kind, state, jobs, cost_s FROM tally ORDER BY id DESC LIMIT 6")
    jobs.cancel(engine, sweep="study")
    with engine.connect() as connection:
        rows = connection.execute(tally).all()
    by_kind = {"prepare": 2, "train": 20, "evaluate": 40}
    assert {(row.kind, row.jobs) for row in rows} == {
        (kind, sign * count) for kind, count in by_kind.items() for sign in (-1, 1)
    }
    assert {row.state for row in rows if row.jobs > 0} == {"cancelled"}
    assert sum(row.cost_s for row in rows) == 0
    engine.dispose()


def test_status_imports_nothing_heavy():
    program = (
        "import sys, xsweep.db.status, xsweep.db.jobs\n"
        "heavy = {'numpy', 'scipy', 'torch', 'ray', 'transformers', 'alembic', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root
    )
    assert (found.stdout.strip(), found.stderr) == ("[]", "")
