"""A node of a real Ray cluster drains: its jobs save a checkpoint and resume elsewhere."""

import os
import re
import signal
import subprocess
import sys

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from tiny import write_study
from waiting import wait_for

from xsweep.db import jobs, status
from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.orchestrator.runtime.attempt import was_preempted

pytestmark = [pytest.mark.slow(10), pytest.mark.timeout(600)]

NODES = ("0", "1", "1")
"""CPUs of each, the head's first: one job at a time."""

DRAIN = """
import os, sys, time
import ray
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

address = os.environ["RAY_ADDRESS"]
ray.init(address=address, log_to_driver=False)
print("connected", flush=True)
job = int(sys.stdin.readline())
for actor in ray.util.list_named_actors(all_namespaces=True):
    status = ray.get(ray.get_actor(actor["name"], actor["namespace"]).status.remote())
    if status["job_id"] == job:
        break
print("found", flush=True)
sys.stdin.readline()
at_ms = int(time.time() * 1000) + 300_000
accepted = GcsClient(address=address).drain_node(
    status["node_id"], DRAIN_NODE_REASON_PREEMPTION, "the spot price rose", at_ms
)
print(accepted[0], status["node_id"], flush=True)
sys.stdin.read()
print({node["NodeID"]: node["Alive"] for node in ray.nodes()}[status["node_id"]])
"""


def test_jobs_of_a_draining_node_save_a_checkpoint_stop_and_are_not_charged(
    workplace, several_nodes
):
    workplace.environment |= several_nodes
    write_study(workplace.folder, steps=200, objectives=("infonce",))
    workplace.command("submit", "tiny.yaml", "--no-start")
    controller = workplace.start("run")
    notice = subprocess.Popen(
        [sys.executable, "-c", DRAIN],
        env=workplace.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert notice.stdout.readline() == "connected\n"
    pattern = "store/jobs/train/*/*/attempt-1/checkpoints/step-*"
    checkpoint = wait_for(lambda: next(workplace.home.glob(pattern), None))
    folder = checkpoint.parent.parent
    log = folder.with_name("attempt-1.log").read_text()
    job, pid = map(int, re.search(r"\[job (\d+), token 1, pid (\d+)\]", log).groups())
    print(job, file=notice.stdin, flush=True)
    assert notice.stdout.readline() == "found\n"
    os.kill(pid, signal.SIGSTOP)  # it is not done before its controller has seen the notice
    print(file=notice.stdin, flush=True)
    assert notice.stdout.readline().startswith("True ")
    output = ""
    for line in controller.stdout:
        output += line
        if "draining" in line:
            break
    os.kill(pid, signal.SIGCONT)
    output += controller.communicate(timeout=300)[0]
    assert controller.returncode == 0, output
    alive, _ = notice.communicate("", timeout=60)
    assert alive.strip() == "False", "Ray removes the node once nothing is left on it"

    (name,) = re.findall(r"draining  (train .*): its node will be removed", output)
    assert f"stopped   {name}" in output
    engine = connect(f"sqlite:///{workplace.home}/xsweep.db")
    first, second = jobs.explain(engine, job).attempts
    assert (first.outcome, first.failure) == ("released", None)
    assert second.outcome == "done"
    assert {each.state for each in status.list_jobs(engine)} == {"done"}
    assert check(engine) == []
    engine.dispose()
    assert "resuming after step" in folder.with_name("attempt-2.log").read_text()


@pytest.mark.parametrize(
    ("reason", "preempted"),
    [
        (NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED, True),
        (NodeDeathInfo.AUTOSCALER_DRAIN_IDLE, False),
        (NodeDeathInfo.UNEXPECTED_TERMINATION, False),
    ],
)
def test_the_death_of_an_actor_is_a_preemption_where_ray_says_so(reason, preempted):
    died = ActorDiedErrorContext(
        actor_id=b"0" * 16, node_death_info=NodeDeathInfo(reason=reason), error_message="gone"
    )
    assert was_preempted(ray.exceptions.ActorDiedError(died)) is preempted
