"""Warm workers: which are used again, and which make room."""

import json
import os
import subprocess
import sys

import pytest

from xsweep.orchestrator.runtime.placement import request_of
from xsweep.orchestrator.runtime.pool import runs_alone

PROGRAM = """
import json, ray
from dataclasses import replace
from xsweep.orchestrator.runtime.attempt import was_preempted
from xsweep.orchestrator.runtime.pool import Pool
from xsweep.orchestrator.runtime.placement import request_of

class Idle:
    def __init__(self, gpus):
        pass

ray.init(log_to_driver=False, namespace="pool")
pool, cpu = Pool(Idle), {"cpus": 0.3}  # three of them on the node's one core

def take(name, asked, alone=False, model=None):
    return pool.take(name, request_of(asked), alone=alone, model=model)

oldest, older, busy = (take(f"job {n}", cpu, model=f"model {n}") for n in range(3))
results = {"full": take("one too many", cpu) is None}
for placement in (oldest, older):
    pool.give_back(placement, reusable=True)
results["no use"] = take("large", {"cpus": 1}, alone=True) is None
results["warm"] = [p.model for p in pool._idle()]
results["with its model"] = take("job 3", cpu, model="model 1") is older
pool.give_back(older, reusable=True)
alone = take("job 4", cpu, alone=True)
results["still warm"] = [p.model for p in pool._idle()]
results["again"] = take("job 5", cpu) is older
gone = replace(pool.nodes()[0], id="1" * 56)  # removed since it was listed
pool._nodes, pool._listed_s = [gone], float("inf")  # no other reason to list them again
lost = take("job 6", cpu, alone=True)
try:
    ray.get(lost.actors[0].__ray_ready__.remote())
except ray.exceptions.RayError as error:
    results["on a removed node"] = was_preempted(error)
pool.kill(lost)
results["listed again"] = gone not in pool.nodes()
for placement in (older, busy, alone):
    pool.kill(placement)
print(json.dumps(results))
ray.shutdown()
"""


@pytest.fixture(scope="module")
def results(shared_ray):
    """Run the program once; its results by name."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **shared_ray[0]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow(5)
def test_a_job_that_needs_room_kills_as_few_warm_workers_as_possible(results):
    assert results["full"], "a job of the same size finds no room"
    assert results["no use"], "and one for which all idle ones would not do kills none"
    assert results["warm"] == ["model 0", "model 1"]
    assert results["with its model"]
    assert results["still warm"] == ["model 1"]
    assert results["again"]


@pytest.mark.slow(0.1)
def test_a_job_placed_on_a_node_that_was_removed_is_not_charged_and_the_nodes_are_listed_again(
    results,
):
    assert results["on a removed node"] is True
    assert results["listed again"]


@pytest.mark.parametrize(
    ("kind", "resources", "alone"),
    [
        ("train", {"cpus": 2}, False),
        ("evaluate", {"gpus": 1}, False),
        ("train", {"gpus": 0.5}, True),
        ("train", {"cpus": 1, "ranks": 2}, True),
    ],
)
def test_only_trainings_on_gpus_or_several_ranks_need_new_processes(kind, resources, alone):
    assert runs_alone(kind, request_of(resources)) is alone
