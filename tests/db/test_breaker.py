import itertools

import pytest
from job_table import counts, fail, finish, new_job, run_all, states, submit, take

from xsweep.db import jobs
from xsweep.db.check import check
from xsweep.db.events import history

AXES = {"backbone": ["mini", "huge"], "objective": ["bce", "hinge", "infonce"], "seed": [1, 2]}


def grid() -> list[jobs.NewJob]:
    """12 trainings with an evaluation each; the trainings are claimed in this order."""
    wanted = []
    for place, values in enumerate(itertools.product(*AXES.values())):
        labels = dict(zip(AXES, values, strict=True))
        name = " ".join(map(str, values))
        wanted.append(new_job(name, labels=labels, cost=100 - place))
        wanted.append(new_job(f"test {name}", name, kind="evaluate", labels=labels))
    return wanted


def end_all(engine, broken) -> list[str]:
    """Run all jobs; the broken ones fail with a message that contains a number."""
    tried = []
    while claims := jobs.claim(engine, owner="alice", limit=1, lease_s=60):
        (claim,) = claims
        tried.append(claim.name)
        if claim.kind == "train" and broken(claim.name):
            fail(engine, claim, "CONFIG", reason=f"layer {len(tried)} is not there\ntraceback")
        else:
            finish(engine, claim)
    return tried


def test_a_backbone_whose_jobs_all_fail_is_stopped_and_the_rest_of_the_grid_runs(engine):
    submit(engine, grid())
    tried = end_all(engine, lambda name: "huge" in name)
    assert [name for name in tried if name.startswith("huge")] == [
        "huge bce 1",
        "huge bce 2",
        "huge hinge 1",  # the third failure, and the second objective: the backbone is the cause
    ]
    assert counts(engine) == {"done": 12, "failed": 3, "skipped": 9}
    (why,) = jobs.explain(engine, "huge infonce 2").why
    assert why.startswith("skipped: backbone huge: its jobs fail alike: CONFIG: layer")
    assert jobs.explain(engine, "test huge infonce 2").state == "skipped"
    stopped = [event.detail for event in history(engine) if event.kind == "stopped"]
    assert {(each["axis"], each["value"]) for each in stopped} == {("backbone", "huge")}
    assert check(engine) == []


@pytest.mark.parametrize("only", [None, ["CONFIG"]])
def test_a_retry_reopens_a_stopped_column(engine, only):
    submit(engine, grid())
    end_all(engine, lambda name: "huge" in name)
    assert jobs.retry(engine, sweep="study", failures=["NAN"]) == 0
    assert jobs.retry(engine, sweep="study", failures=only) == 12
    assert len(run_all(engine)) == 12
    assert counts(engine) == {"done": 24}
    assert check(engine) == []


def test_a_stopped_job_can_be_retried_alone(engine):
    submit(engine, grid())
    end_all(engine, lambda name: "huge" in name)
    assert jobs.retry(engine, job="huge infonce 2") == 2
    assert run_all(engine) == ["huge infonce 2", "test huge infonce 2"]
    assert check(engine) == []


def test_failures_of_one_cell_stop_neither_its_backbone_nor_its_objective(engine):
    labels = {"backbone": "mini", "objective": "bce"}
    seeds = [new_job(f"s{n}", labels=labels | {"seed": n}, cost=9) for n in range(4)]
    submit(engine, [*grid(), *seeds])
    tried = end_all(engine, lambda name: name.startswith("s"))
    assert len(tried) == len(grid()) + 4


def test_a_column_with_a_result_is_not_stopped(engine):
    submit(engine, grid())
    tried = end_all(engine, lambda name: "huge" in name and name != "huge bce 1")
    assert sum(name.startswith("huge") for name in tried) == 6


def test_different_failures_stop_nothing(engine):
    submit(engine, grid())
    count = itertools.count()
    for claim in jobs.claim(engine, owner="alice", limit=12, lease_s=60)[6:]:
        fail(engine, claim, "CONFIG", reason=f"reason {'abcdef'[next(count)]}")
    assert "skipped" not in {states(engine)[name] for name in ("mini bce 1", "mini infonce 2")}


@pytest.mark.parametrize("failure", ["INFRA", "NODE"])
def test_failures_of_machines_stop_no_column(engine, failure):
    submit(engine, grid())
    while claims := jobs.claim(engine, owner="alice", limit=1, lease_s=60):
        fail(engine, claims[0], failure, reason="no space left")
    assert counts(engine) == {"failed": 12, "skipped": 12}
    assert "stopped" not in {event.kind for event in history(engine, latest=1000)}


def test_a_grid_whose_jobs_all_fail_tries_every_column(engine):
    submit(engine, grid())
    tried = end_all(engine, lambda name: True)
    words = {word for name in tried for word in name.split()}
    assert words >= {*AXES["backbone"], *AXES["objective"]}, "each column had its chance"
    assert len(tried) > 6
    assert check(engine) == []


def test_jobs_that_another_sweep_needs_are_not_stopped(engine):
    submit(engine, grid())
    shared = next(job for job in grid() if job.name == "huge infonce 2")
    submit(engine, [shared], name="other")
    tried = end_all(engine, lambda name: "huge" in name)
    assert [name for name in tried if "huge infonce" in name] == ["huge infonce 2"]


def test_running_jobs_are_not_stopped(engine):
    submit(engine, grid())
    held = jobs.claim(engine, owner="alice", limit=12, lease_s=60)
    for claim in held[6:9]:
        fail(engine, claim, "CONFIG", reason="no such layer")
    assert states(engine)["huge infonce 2"] == "running"
    assert take_none(engine)
    for claim in held[9:]:
        assert finish(engine, claim)
    assert check(engine) == []


def take_none(engine) -> bool:
    return jobs.claim(engine, owner="bob", limit=1, lease_s=60, kinds=["train"]) == []


def test_the_first_failures_stop_nothing(engine):
    submit(engine, grid())
    for _ in range(2):
        fail(engine, take(engine), "CONFIG")
    assert "skipped" not in {states(engine)[job.name] for job in grid() if job.kind == "train"}
