"""Trainings of several ranks on the nodes of a real Ray cluster; one of the ranks is killed."""

import json
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from tiny import write_study
from waiting import wait_for

from xsweep.db import jobs, status
from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.orchestrator.runtime.process import namespace
from xsweep.orchestrator.settings import load_settings

pytestmark = [pytest.mark.slow(30), pytest.mark.timeout(600)]

NODES = ("1", "1")
"""CPUs of each, the head included: too few for two ranks on one node."""
STEPS = 80
"""Four checkpoints: most of a training is left when the first one is there."""


def run_with(workplace, environment, ranks):
    """Submit a study with one training of `ranks` ranks."""
    # One worker prepares and evaluates: importing torch is most of a worker's work here.
    workplace.environment |= {**environment, "XSWEEP_LIMITS": "prepare=1,evaluate=1"}
    grid = write_study(workplace.folder, steps=STEPS, objectives=("infonce",))
    needs = f"resources: {{train: {{cpus: 1, ranks: {ranks}, spread: true}}}}\n"
    grid.write_text(grid.read_text() + needs)
    workplace.xsweep("submit", "tiny.yaml", "--no-start")
    return workplace


def first_checkpoint(workplace):
    """Folder of the first attempt that has written a checkpoint."""
    pattern = "store/jobs/train/*/*/attempt-1/checkpoints/step-*"
    return wait_for(lambda: next(workplace.home.glob(pattern), None)).parent.parent


def second_rank(folder):
    """Job and process of an attempt's rank 1."""
    log = Path(f"{folder}.rank-1.log").read_text()
    return map(int, re.search(r"\[job (\d+), token 1, pid (\d+)\]", log).groups())


def attempts(engine):
    """Number of attempts of every training."""
    return {job.job_id: job.token for job in status.list_jobs(engine, kind="train")}


def summary(workplace):
    """The training's summary."""
    (path,) = workplace.home.glob("store/jobs/train/*/*/attempt-*/summary.json")
    return json.loads(path.read_text())


def means(workplace):
    """The numbers of the report."""
    return [float(n) for n in re.findall(r"\d\.\d+", workplace.xsweep("report", "tiny"))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, workplace_in, several_nodes):
    """The study with one rank, and the output of a controller that slept while another ran it."""
    place = run_with(workplace_in(tmp_path_factory.mktemp("alone")), several_nodes, 1)
    place.environment |= {"XSWEEP_LEASE_S": "10"}
    asleep = place.start("run")
    first_checkpoint(place)
    asleep.send_signal(signal.SIGSTOP)
    # The other one is on another host, as it were: it shares the database, the store and Ray.
    place.environment |= {"XSWEEP_DB": f"sqlite:///{place.home}/xsweep.db"}
    place.environment |= {"XSWEEP_STORE": str(place.home / "store"), "XSWEEP_HOME": "elsewhere"}
    assert "adopted   train" in place.xsweep("run")
    asleep.send_signal(signal.SIGCONT)
    late, _ = asleep.communicate(timeout=120)
    assert asleep.returncode == 0, late
    return place, late


def test_a_controller_that_wakes_leaves_alone_what_another_has_adopted(alone):
    place, late = alone
    assert "stopping it" not in late
    engine = connect(f"sqlite:///{place.home}/xsweep.db")
    assert set(attempts(engine).values()) == {1}, "nothing was begun again"
    assert check(engine) == []
    engine.dispose()


def test_no_more_jobs_of_a_kind_run_at_once_than_its_limit(alone):
    engine = connect(f"sqlite:///{alone[0].home}/xsweep.db")
    prepared = [
        jobs.explain(engine, job.job_id) for job in status.list_jobs(engine, kind="prepare")
    ]
    engine.dispose()
    spans = sorted((job.attempts[-1].started_at, job.attempts[-1].ended_at) for job in prepared)
    assert len(spans) == 4
    assert all(begun >= ended for (_, ended), (begun, _) in pairwise(spans))


RESERVE = """
import os, sys, ray
ray.init(address=os.environ["RAY_ADDRESS"], namespace=sys.argv[1], log_to_driver=False)
group = ray.util.placement_group([{"CPU": 1}], name=sys.argv[2], lifetime="detached")
assert group.wait(60)
"""


def test_a_gang_outlives_its_controller_and_the_one_after_a_killed_rank_resumes_to_the_same_result(
    alone, workplace, several_nodes
):
    place = run_with(workplace, several_nodes, len(NODES))
    url = f"sqlite:///{place.home}/xsweep.db"
    engine = connect(url)
    # With one CPU reserved, no two ranks would find their nodes.
    space = namespace(load_settings(database=url), engine)
    subprocess.run(
        [sys.executable, "-c", RESERVE, space, f"{space}/left by nobody"],
        env={**place.environment, "RAY_ADDRESS": several_nodes["RAY_ADDRESS"]},
        check=True,
    )
    controller = place.start("run")
    job, pid = second_rank(first_checkpoint(place))
    os.kill(pid, signal.SIGSTOP)
    controller.kill()
    output, _ = controller.communicate()
    assert "removed   the placement group" in output
    controller = place.start("run")
    assert any("adopted   train" in line for line in controller.stdout)
    assert attempts(engine)[job] == 1, "it was not begun again"

    os.kill(pid, signal.SIGKILL)
    output, _ = controller.communicate(timeout=300)
    assert controller.returncode == 0, output
    assert "NODE: rank " in output
    assert attempts(engine)[job] == 2
    assert check(engine) == []
    engine.dispose()
    for rank in map(str, range(len(NODES))):
        assert "resuming after step" in place.xsweep("logs", str(job), "--rank", rank)
    assert "not written yet, or was removed" in place.xsweep(
        "logs", str(job), "--rank", str(len(NODES)), code=2
    )
    assert summary(place)["ranks"][-1][1] == len(NODES)
    several, one = summary(place), summary(alone[0])
    assert several["final_loss"] == pytest.approx(one["final_loss"], rel=1e-4)
    assert means(place) == pytest.approx(means(alone[0]), abs=1e-3)
