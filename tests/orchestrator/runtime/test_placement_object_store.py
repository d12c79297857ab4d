"""A training of two ranks on two hosts that share nothing but an object store.

The hosts are Ray nodes of this machine; the second one has a mount namespace of its own, in which
another disk lies where the first one keeps its copies of the store.
"""

import contextlib
import os
import secrets
import subprocess
import sys

import object_store
import pytest
from sessions import end_session, session
from tiny import write_study
from waiting import wait_for

from xsweep.db import status
from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.orchestrator.runtime.ray_cluster import free_port

pytestmark = [
    pytest.mark.slow(90),
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
        reason="needs the right to make a mount namespace",
    ),
]

STEPS = 200
"""Ten checkpoints: most of a training is left when the first one is there."""
RAY = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
OTHER_DISK = 'mount -t tmpfs none "$XSWEEP_CACHE" && exec "$@"'


@pytest.fixture
def two_hosts(tmp_path):
    """A cluster of two hosts and a store between them: a program's environment, and the nodes."""
    cache, token = tmp_path / "cache", tmp_path / "token"
    cache.mkdir(mode=0o700)
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    started = []

    def start(name, *command):
        log = tmp_path / f"{name}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                command,
                env={**os.environ, **ours},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        started.append(process)
        wait_for(lambda: "Ray runtime started" in log.read_text(), what=f"the {name}")
        return log.read_text()

    with contextlib.contextmanager(object_store.serve)() as url:
        ours = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
        ours |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        ours |= {"XSWEEP_CACHE": str(cache), "XSWEEP_STORE": f"{url}/study"}
        try:
            port = free_port()
            quiet = ("--include-dashboard", "False")
            start("head", *RAY, "--head", "--port", str(port), "--num-cpus", "1", *quiet)
            address = f"127.0.0.1:{port}"
            apart = ("unshare", "--mount", "sh", "-c", OTHER_DISK, "sh")
            start("other host", *apart, *RAY, "--address", address, "--num-cpus", "1")
            yield {**ours, "RAY_ADDRESS": address}, started
        finally:
            for process in reversed(started):
                end_session(process.pid)
                process.wait()


def test_a_gang_whose_hosts_share_only_an_object_store_is_stopped_and_goes_on(workplace, two_hosts):
    # One worker prepares and evaluates: importing torch is most of a worker's work here.
    environment, nodes = two_hosts
    workplace.environment |= {**environment, "XSWEEP_LIMITS": "prepare=1,evaluate=1"}
    grid = write_study(workplace.folder, steps=STEPS, objectives=("infonce",))
    needs = "resources: {train: {cpus: 1, ranks: 2, spread: true}}\n"
    grid.write_text(grid.read_text() + needs)
    workplace.xsweep("submit", "tiny.yaml", "--no-start")
    engine = connect(f"sqlite:///{workplace.home}/xsweep.db")

    def past_first_checkpoint():
        assert controller.poll() is None, controller.communicate()[0]
        (training,) = status.list_jobs(engine, kind="train")
        running = {job.job_id: job.progress for job in status.summary(engine).running}
        return (running.get(training.job_id) or {}).get("done", 0) > 20

    controller = workplace.start("run")
    wait_for(past_first_checkpoint)
    processes = [process for node in nodes for process in session(node.pid)]
    workers = [process for process in processes if process.name() == "ray::Worker"]
    for worker in workers:  # none ends before it is asked to stop
        worker.suspend()
    controller.terminate()
    assert any("stopping: waiting for" in line for line in controller.stdout)
    for worker in workers:
        worker.resume()
    output, _ = controller.communicate(timeout=120)
    assert "stopped   train" in output

    workplace.xsweep("run")
    (training,) = status.list_jobs(engine, kind="train")
    assert (training.state, training.token) == ("done", 2)
    assert check(engine) == []
    engine.dispose()
    # The checkpoint was written on one host; the other one has it from the store.
    for rank in ("0", "1"):
        log = workplace.xsweep("logs", str(training.job_id), "--rank", rank)
        assert "resuming after step" in log
