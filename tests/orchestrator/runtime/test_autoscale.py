"""A cluster that begins without a place for jobs, with Ray's own autoscaler and its fake provider.

The provider starts nodes as processes of this machine. `ray.cluster_utils.AutoscalingCluster` is no
use: it needs a file that Ray's wheel lacks, and ends every Ray cluster of the machine.
"""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from sessions import end_session
from tiny import write_study
from waiting import wait_for

from xsweep.db import status
from xsweep.db.engine import connect
from xsweep.orchestrator.runtime.ray_cluster import disable_client_server, free_port

pytestmark = [pytest.mark.slow(60), pytest.mark.timeout(600)]

HEAD = "f" * 51 + "0" * 5
"""The id that the fake provider gives to the head."""
TYPES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "small": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    "large": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
}
COMMANDS = ("setup", "initialization", "head_setup", "worker_setup", "head_start_ray")


@pytest.fixture
def growing_cluster(tmp_path):
    """Environment for a program that uses a cluster of a head alone, which grows by itself."""
    address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    config = {
        "cluster_name": "growing",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.05,
        "provider": {
            "type": "fake_multinode",
            "head_node_id": HEAD,
            "gcs_address": address,
            "use_node_id_as_ip": True,  # all its nodes have one address
        },
        "auth": {},
        "available_node_types": TYPES,
        "head_node_type": "ray.head.default",
        **{"docker": {}, "file_mounts": {}, "cluster_synced_files": []},
        **{"file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": []},
        **{f"{name}_commands": [] for name in (*COMMANDS, "worker_start_ray")},
    }
    (tmp_path / "autoscaler.yaml").write_text(json.dumps(config))
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text(secrets.token_hex(32))
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
    }
    fake = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    fake["RAY_START_HOOK"] = f"{disable_client_server.__module__}.{disable_client_server.__name__}"
    log = tmp_path / "head.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--port", address.rpartition(":")[2], "--num-cpus", "0", "--num-gpus", "0"),
                *("--include-dashboard", "False", "--include-log-monitor", "False"),
                *("--disable-usage-stats",),
                *("--autoscaling-config", str(tmp_path / "autoscaler.yaml")),
            ],
            env={**os.environ, **ours, **fake},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text(), what="Ray's head")
        yield {**ours, "RAY_ADDRESS": address}
    finally:
        end_session(process.pid)
        process.wait()


IS_ALONE = """
import sys, ray
from waiting import wait_for

def living():
    return [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]

ray.init(log_to_driver=False)
wait_for(lambda: living() == [0], float(sys.argv[1]), "idle nodes to go")
"""


def head_is_alone(environment, timeout_s):
    """Wait that long until the only living node is the head, which has no CPU."""
    command = [sys.executable, "-c", IS_ALONE, str(timeout_s)]
    tests = {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, env=environment | tests).returncode == 0


def test_nodes_come_because_jobs_wait_for_them_and_go_when_none_does(workplace, growing_cluster):
    workplace.environment |= growing_cluster
    grid = write_study(workplace.folder, objectives=("infonce",))
    grid.write_text(grid.read_text() + "resources: {train: {cpus: 2}}\n")
    workplace.command("submit", "tiny.yaml", "--no-start")
    assert head_is_alone(workplace.environment, 0)
    output = workplace.xsweep("run")
    assert "one asks for 1 CPU, and there is no node that runs jobs" in output
    engine = connect(f"sqlite:///{workplace.home}/xsweep.db")
    # Trainings found their 2 CPUs, which only a node of the larger type has.
    assert {each.state for each in status.list_jobs(engine)} == {"done"}
    engine.dispose()
    assert head_is_alone(workplace.environment, 120)
