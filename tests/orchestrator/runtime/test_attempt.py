"""The outcome of an attempt."""

import json
import subprocess
import sys
from tempfile import TemporaryDirectory

import pytest

from xsweep.orchestrator.runtime.attempt import decide, out_of_memory
from xsweep.orchestrator.runtime.placement import ResourceRequest

OUT_OF_MEMORY = {"state": "failed", "failure": "OOM_GPU", "reason": "out of memory"}
LOST_PEER = {"state": "failed", "failure": "NODE", "reason": "Connection closed by peer"}
UNKNOWN = {"state": "failed", "failure": "UNKNOWN", "reason": "RuntimeError"}
FINISHED = {"state": "finished", "failure": None, "reason": None}


@pytest.mark.parametrize(
    ("outcomes", "failure", "rank"),
    [
        ({0: LOST_PEER, 1: OUT_OF_MEMORY}, "OOM_GPU", 1),  # rank 0 only lost its peer
        ({0: UNKNOWN, 1: LOST_PEER}, "NODE", 1),  # a peer is gone: no program is wrong
        ({1: FINISHED, 0: UNKNOWN}, "UNKNOWN", 0),
    ],
)
def test_the_failure_of_a_gang_is_the_one_with_a_cause_of_its_own(outcomes, failure, rank):
    outcome = decide(outcomes, 2)
    assert outcome["failure"] == failure
    assert outcome["reason"].startswith(f"rank {rank} of 2: ")


REPORT = """1 worker(s) were killed due to the node running low on memory. \
Memory on the node (IP: 192.0.2.2, ID: 82a9) was 15.2GB used / 16GB limit (0.95)
Selected to kill: (Actor(beef): task name=train (a+b):Worker.run, pid=7, actual memory used=9.00GB)
Selected to kill: (Task: task name=worker 1:Worker.__init__, pid=8, actual memory used=3.00GB)
"""


@pytest.mark.parametrize(
    ("name", "requested_bytes", "failure"),
    [
        ("train (a+b)", None, "OOM_HOST"),  # 9 GB are more than the other 6.2
        ("worker 1", None, "NODE_FULL"),
        ("train (a+b)", 10 * 2**30, "NODE_FULL"),
        ("worker 1", 2 * 2**30, "OOM_HOST"),
        ("worker", None, "OOM_HOST"),  # not in the report
    ],
)
def test_a_job_pays_for_a_full_node_if_its_own_memory_filled_it(name, requested_bytes, failure):
    resources = {"memory": requested_bytes} if requested_bytes else {}
    outcome = out_of_memory(REPORT, name, ResourceRequest(resources=resources))
    assert (outcome["state"], outcome["failure"]) == ("failed", failure)
    assert "\n" not in outcome["reason"]


FULL = """
import json, sys, time, ray
from xsweep.orchestrator.runtime.attempt import out_of_memory
from xsweep.orchestrator.runtime.placement import ResourceRequest

class Worker:
    def run(self):
        time.sleep(60)

full = {"memory_usage_threshold": 0.001, "memory_monitor_refresh_ms": 50}
alone = {"include_dashboard": False, "log_to_driver": False, "_temp_dir": sys.argv[1]}
ray.init("local", num_cpus=1, _system_config=full, **alone)
actor = ray.remote(Worker).options(name="worker 1").remote()
try:
    ray.get(actor.run.remote())
except ray.exceptions.OutOfMemoryError as error:
    for memory in ({}, {"memory": 1}):
        request = ResourceRequest(resources=memory)
        print(json.dumps(out_of_memory(str(error), "worker 1", request)))
"""


@pytest.mark.slow(6)
def test_the_report_of_rays_own_memory_monitor_is_understood():
    # Not pytest's folder: the path of a socket may have no more than 100 letters.
    with TemporaryDirectory(prefix="xsweep-", dir="/tmp") as folder:
        command = [sys.executable, "-c", FULL, folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    crowded, grown = map(json.loads, done.stdout.splitlines()[-2:])
    assert (crowded["failure"], grown["failure"]) == ("NODE_FULL", "OOM_HOST")
    assert "by itself, which requested none" in crowded["reason"]


def test_a_gang_has_finished_when_its_first_rank_has():
    assert decide({0: FINISHED}, 3) == FINISHED
