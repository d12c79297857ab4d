"""Processes are killed while a sweep runs; afterwards the report must be that of a calm run."""

import contextlib
import os
import re
import shutil
import signal

import object_store
import psutil
import pytest
from chaos import account
from postgresql import administer
from proxy import Line
from sqlalchemy import make_url
from tiny import write_study
from waiting import wait_for

from xsweep.db import events, status
from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.db.status import outlook
from xsweep.orchestrator.runtime import ray_cluster

# a calm run is made first, and on a busy machine each run takes minutes
pytestmark = [pytest.mark.slow(30), pytest.mark.timeout(600)]

STEPS = 120
"""Six checkpoints: most of a training is left when the first one is there."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory, workplace_in, shared_ray):
    """A place where the study ran and nothing went wrong."""
    place = workplace_in(tmp_path_factory.mktemp("calm"))
    place.environment |= shared_ray[0]
    write_study(place.folder, steps=STEPS)
    place.command("submit", "tiny.yaml", "--no-start")
    place.xsweep("run")
    return place


@pytest.fixture(scope="module")
def calm_report(calm) -> str:
    return calm.command("report", "tiny", "--format", "json")


@pytest.fixture
def study(guest):
    write_study(guest.folder, steps=STEPS)
    guest.command("submit", "tiny.yaml", "--no-start")
    return guest


@pytest.fixture
def engine(study):
    engine = connect(f"sqlite:///{study.home}/xsweep.db")
    yield engine
    engine.dispose()


def training(
    place, store: str = ".xsweep/store", besides: int = 0, attempt: int = 1
) -> tuple[int, int]:
    """Job and process of a training that is past its first checkpoint, and stopped there.

    It is the first one, or the first one `besides` another.
    """

    def found():
        for log in place.folder.glob(f"{store}/jobs/train/*/*/attempt-{attempt}.log"):
            if not any(log.with_suffix("").glob("checkpoints/step-*")):
                continue
            job, pid = map(
                int, re.search(r"\[job (\d+), token \d, pid (\d+)\]", log.read_text()).groups()
            )
            if job != besides:
                return job, pid
        return None

    job, pid = wait_for(found)
    os.kill(pid, signal.SIGSTOP)
    return job, pid


def kinds_of_events(engine, job_id: int) -> list[str]:
    return [event.kind for event in events.history(engine, job_id=job_id)]


def attempts(engine) -> dict[int, int]:
    """Number of attempts of every training."""
    return {job.job_id: job.token for job in status.list_jobs(engine, kind="train")}


def test_a_controller_adopts_what_a_killed_one_left_and_replaces_a_killed_worker(
    study, engine, calm_report
):
    controller = study.start("run")
    adopted, pid = training(study)
    assert "a controller is running here already" in study.xsweep("run", code=3)
    controller.kill()
    controller.communicate()

    controller = study.start("run")
    assert any("adopted" in line for line in controller.stdout)
    os.kill(pid, signal.SIGCONT)
    killed, pid = training(study, besides=adopted)
    os.kill(pid, signal.SIGKILL)
    output, _ = controller.communicate(timeout=240)
    assert controller.returncode == 0, output
    assert "adopted" in kinds_of_events(engine, adopted)
    assert attempts(engine) == {adopted: 1, killed: 2}
    assert "resuming after step" in study.command("logs", str(killed))
    assert study.command("report", "tiny", "--format", "json") == calm_report


def test_a_silent_worker_is_killed_its_training_resumes_and_a_second_ctrl_c_loses_nothing(guest):
    write_study(guest.folder, steps=400, objectives=("infonce",))
    guest.environment["XSWEEP_LEASE_S"] = "10"
    guest.command("submit", "tiny.yaml", "--no-start")
    engine = connect(f"sqlite:///{guest.home}/xsweep.db")
    controller = guest.start("run")

    def progress():
        """Steps that a worker has reported in answer to the controller's question."""
        running = [job.progress or {} for job in status.summary(engine).running]
        return any(20 < each.get("done", 0) < 400 == each["total"] for each in running)

    wait_for(progress)
    job, silent = training(guest)
    output = ""
    while not re.search(r"train .*: NODE: its worker has not answered for 1\d s", output):
        latest = controller.stdout.readline()
        assert latest, output
        output += latest
    training(guest, attempt=2)  # it will not save anything more, however long we wait
    assert not psutil.pid_exists(silent)
    assert "resuming after step" in guest.command("logs", str(job))

    controller.send_signal(signal.SIGINT)
    assert any("stopping: waiting for" in line for line in controller.stdout)
    controller.send_signal(signal.SIGINT)
    output, _ = controller.communicate(timeout=60)
    assert controller.returncode == 128 + signal.SIGINT, output
    assert attempts(engine)[job] == 2
    assert kinds_of_events(engine, job)[-1] == "released"
    assert status.summary(engine).running == []
    assert check(engine) == []
    engine.dispose()


def test_a_drained_study_in_an_object_store_goes_on_on_another_host_and_after_that_ones_crash(
    workplace, calm_report
):
    with contextlib.contextmanager(object_store.serve)() as url:
        write_study(workplace.folder, steps=STEPS)
        workplace.environment |= {name: os.environ[name] for name in os.environ if "AWS_" in name}
        workplace.environment |= {"XSWEEP_STORE": f"{url}/study", "XSWEEP_CACHE": "one"}
        workplace.command("submit", "tiny.yaml", "--no-start")
        controller = workplace.start("run")
        drained, pid = training(workplace, "one/stores/*")
        controller.terminate()
        assert any("stopping: waiting for" in line for line in controller.stdout)
        os.kill(pid, signal.SIGCONT)
        output, _ = controller.communicate(timeout=120)
        assert controller.returncode == 128 + signal.SIGTERM, output
        engine = connect(f"sqlite:///{workplace.home}/xsweep.db")
        assert kinds_of_events(engine, drained)[-1] == "released", "and no failure is charged"
        assert status.summary(engine).running == []
        assert ray_cluster.running_local(workplace.home) is None
        shutil.rmtree(workplace.folder / "one")

        workplace.environment["XSWEEP_CACHE"] = "two"
        controller = workplace.start("run")
        crashed, _ = training(workplace, "two/stores/*", besides=drained)
        controller.kill()
        controller.communicate()
        ray_cluster.stop_local(workplace.home)

        workplace.xsweep("run")
        assert attempts(engine) == {drained: 2, crashed: 2}
        assert "resuming after step" in workplace.command("logs", str(drained))
        assert check(engine) == []
        engine.dispose()
        assert workplace.command("report", "tiny", "--format", "json") == calm_report


def test_a_finished_sweep_has_nothing_left_to_do(calm):
    engine = connect(f"sqlite:///{calm.home}/xsweep.db")
    before = {job.job_id: job.token for job in status.list_jobs(engine)}
    calm.command("submit", "tiny.yaml", "--no-start")
    calm.xsweep("run")
    assert {job.job_id: job.token for job in status.list_jobs(engine)} == before
    left = outlook(engine)
    assert left.idle
    assert left.finished == left.total == len(before)
    engine.dispose()


def test_requests_that_cannot_be_met_fail_with_the_reason_and_stop_no_controller(workplace):
    grid = write_study(workplace.folder)
    needs = "{train: {cpus: 1, gpus: 64}, evaluate: {cpus: 0.00001}}"
    grid.write_text(f"{grid.read_text()}resources: {needs}\n")
    workplace.command("submit", "tiny.yaml", "--no-start")
    output = workplace.xsweep("run", code=1)
    assert "asks for 1 CPU, 64 GPU; the largest node has" in output
    assert re.search(r"failed    evaluate BM25 .*: CONFIG: \{'cpus': 1e-05.*beyond 0.0001", output)


def test_a_controller_that_loses_sight_of_its_database_kills_no_job(
    guest, postgresql_url, calm_report, report_account
):
    line = Line(postgresql_url)
    write_study(guest.folder, steps=STEPS)
    guest.environment["XSWEEP_DB"] = line.url
    guest.command("submit", "tiny.yaml", "--no-start")
    controller = guest.start("run")
    _, pid = training(guest)
    line.cut()
    wait_for(lambda: line.refused > 2)  # the controller renews its leases every 3 s
    name = make_url(postgresql_url).database
    read_only = f"DATABASE {name} SET default_transaction_read_only = "
    administer(postgresql_url, f"ALTER {read_only} on")
    line.mend()
    os.kill(pid, signal.SIGCONT)
    seen = ""
    while "connect to the primary server" not in seen:  # it answers, as a standby would
        latest = controller.stdout.readline()
        assert latest, seen
        seen += latest
    administer(postgresql_url.replace(f"/{name}?", "/postgres?"), f"ALTER {read_only} off")
    output, _ = controller.communicate(timeout=240)
    assert controller.returncode == 0, output
    assert "database away" in seen
    assert "connect to the primary server" not in output, "one message"
    engine = connect(postgresql_url)
    report_account(account(engine, "a controller cut off from its database", 1))
    assert set(attempts(engine).values()) == {1}, "nothing was begun again"
    assert check(engine) == []
    engine.dispose()
    assert guest.command("report", "tiny", "--format", "json") == calm_report
    line.close()
