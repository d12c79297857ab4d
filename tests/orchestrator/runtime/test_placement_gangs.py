"""Trainings of several ranks on two hosts that share nothing but an object store.

The hosts are Ray nodes of this machine. The second one has a mount namespace of its own, where this
user may make one: another disk lies where the first one keeps its copies of the store.
"""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
from itertools import pairwise

import object_store
import pytest
from sessions import end_session, session
from sqlalchemy import select
from tiny import write_study
from waiting import wait_for

from xsweep.db import jobs, status
from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.db.schema import Job, Result
from xsweep.orchestrator.runtime.process import namespace
from xsweep.orchestrator.runtime.ray_cluster import disable_client_server, free_port
from xsweep.orchestrator.settings import load_settings

pytestmark = [pytest.mark.slow(90), pytest.mark.timeout(600)]

RANKS = 2
"""One CPU on each of as many hosts: too few for two ranks on one."""
STEPS = 200
"""Ten checkpoints: most of a training is left when the first one is there."""
RAY = (
    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"),
    *("--disable-usage-stats", "--include-log-monitor", "False"),
)
OTHER_DISK = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$XSWEEP_CACHE" && exec "$@"')


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """A cluster of two hosts and a store between them: a program's environment, and the nodes."""
    folder = tmp_path_factory.mktemp("hosts")
    cache, token = folder / "cache", folder / "token"
    cache.mkdir(mode=0o700)
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    started = []

    def start(name, *command):
        log = folder / f"{name}.log"
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

    with contextlib.contextmanager(object_store.serve)() as url:
        ours = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
        ours |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        ours |= {"RAY_START_HOOK": f"{disable_client_server.__module__}.disable_client_server"}
        ours |= {"XSWEEP_CACHE": str(cache), "XSWEEP_STORE": f"{url}/study"}
        may_mount = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
        apart = () if may_mount.returncode else (*OTHER_DISK, "sh")
        try:
            port = str(free_port())
            start("head", *RAY, "--head", "--port", port, "--include-dashboard", "False")
            start("other host", *apart, *RAY, "--address", f"127.0.0.1:{port}")
            yield {**ours, "RAY_ADDRESS": f"127.0.0.1:{port}"}, started
        finally:
            for process in reversed(started):
                end_session(process.pid)
                process.wait()


def submit_training(place, hosts, ranks):
    """Submit a study with one training of `ranks` ranks, to a store of its own."""
    # One worker prepares and evaluates: importing torch is most of a worker's work here.
    place.environment |= {**hosts[0], "XSWEEP_LIMITS": "prepare=1,evaluate=1"}
    place.environment["XSWEEP_STORE"] += f"-{ranks}"
    grid = write_study(place.folder, steps=STEPS, objectives=("infonce",))
    needs = f"resources: {{train: {{cpus: 1, ranks: {ranks}, spread: true}}}}\n"
    grid.write_text(grid.read_text() + needs)
    place.command("submit", "tiny.yaml", "--no-start")
    return place, connect(f"sqlite:///{place.home}/xsweep.db")


def wait_for_steps(engine, controller, attempt=1):
    """Wait until the training's attempt has written a checkpoint and trained on."""

    def trains():
        assert controller.poll() is None, controller.communicate()[0]
        (training,) = status.list_jobs(engine, kind="train")
        running = {job.job_id: job.progress for job in status.summary(engine).running}
        done = (running.get(training.job_id) or {}).get("done", 0)
        return training.token == attempt and done > 20

    wait_for(trains)


def ranks(hosts):
    """The processes of the ranks that train now: a host has no CPU for another worker."""
    processes = [process for node in hosts[1] for process in session(node.pid)]
    workers = [process for process in processes if process.name() == "ray::Worker"]
    assert len(workers) == RANKS
    return workers


def summary(engine):
    """The training's summary."""
    with engine.connect() as connection:
        query = select(Result.summary).join(Job, Job.id == Result.job_id).filter_by(kind="train")
        return connection.scalars(query).one()


def means(place):
    """The numbers of the report."""
    return [float(n) for n in re.findall(r"\d\.\d+", place.command("report", "tiny"))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, workplace_in, hosts):
    """The study with one rank, and the output of a controller that slept while another ran it."""
    place, engine = submit_training(workplace_in(tmp_path_factory.mktemp("alone")), hosts, 1)
    place.environment |= {"XSWEEP_LEASE_S": "10"}
    asleep = place.start("run")
    wait_for_steps(engine, asleep)
    with engine.begin():  # a sleeper that held the database's lock would stop the other one
        asleep.send_signal(signal.SIGSTOP)
    # The other one is on another host, as it were: it shares the database, the store and Ray.
    place.environment |= {"XSWEEP_DB": f"sqlite:///{place.home}/xsweep.db"}
    place.environment |= {"XSWEEP_HOME": "elsewhere"}
    assert "adopted   train" in place.xsweep("run")
    asleep.send_signal(signal.SIGCONT)
    late, _ = asleep.communicate(timeout=120)
    assert asleep.returncode == 0, late
    yield place, engine, late
    engine.dispose()


def test_a_controller_that_wakes_leaves_alone_what_another_has_adopted(alone):
    _, engine, late = alone
    assert "stopping it" not in late
    (training,) = status.list_jobs(engine, kind="train")
    assert training.token == 1, "it was not begun again"
    assert check(engine) == []


def test_no_more_jobs_of_a_kind_run_at_once_than_its_limit(alone):
    _, engine, _ = alone
    prepared = [
        jobs.explain(engine, job.job_id) for job in status.list_jobs(engine, kind="prepare")
    ]
    spans = sorted((job.attempts[-1].started_at, job.attempts[-1].ended_at) for job in prepared)
    assert len(spans) == 4
    assert all(begun >= ended for (_, ended), (begun, _) in pairwise(spans))


RESERVE = """
import os, sys, ray
ray.init(address=os.environ["RAY_ADDRESS"], namespace=sys.argv[1], log_to_driver=False)
group = ray.util.placement_group([{"CPU": 1}], name=sys.argv[2], lifetime="detached")
assert group.wait(60)
"""


def test_a_gang_is_adopted_stopped_and_loses_a_rank_and_ends_with_the_result_of_one_rank(
    alone, workplace, hosts
):
    place, engine = submit_training(workplace, hosts, RANKS)
    # With one CPU reserved, no two ranks would find their hosts.
    space = namespace(load_settings(database=f"sqlite:///{place.home}/xsweep.db"), engine)
    subprocess.run(
        [sys.executable, "-c", RESERVE, space, f"{space}/left by nobody"],
        env=place.environment,
        check=True,
    )
    controller = place.start("run")
    wait_for_steps(engine, controller)
    workers = ranks(hosts)
    for worker in workers:  # none ends before it is asked to stop
        worker.suspend()
    controller.kill()
    output, _ = controller.communicate()
    assert "removed   the placement group" in output

    controller = place.start("run")
    assert any("adopted   train" in line for line in controller.stdout)
    controller.terminate()
    assert any("stopping: waiting for" in line for line in controller.stdout)
    for worker in workers:
        worker.resume()
    output, _ = controller.communicate(timeout=120)
    assert "stopped   train" in output
    (training,) = status.list_jobs(engine, kind="train")
    assert training.token == 1, "it was not begun again"

    controller = place.start("run")
    wait_for_steps(engine, controller, attempt=2)
    ranks(hosts)[-1].kill()
    output, _ = controller.communicate(timeout=300)
    assert controller.returncode == 0, output
    assert "NODE: rank " in output
    (training,) = status.list_jobs(engine, kind="train")
    assert (training.state, training.token) == ("done", 3)
    assert check(engine) == []
    # The checkpoint was written on one host; the other one has it from the store.
    for rank in map(str, range(RANKS)):
        log = place.command("logs", str(training.job_id), "--rank", rank)
        assert "resuming after step" in log
    missing = place.command("logs", str(training.job_id), "--rank", str(RANKS), code=2)
    assert "not written yet, or was removed" in missing
    several, one = summary(engine), summary(alone[1])
    engine.dispose()
    assert several["ranks"][-1][1] == RANKS
    assert several["final_loss"] == pytest.approx(one["final_loss"], rel=1e-4)
    assert means(place) == pytest.approx(means(alone[0]), abs=1e-3)
