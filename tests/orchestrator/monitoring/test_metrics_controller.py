"""A running controller serves metrics, posts to the webhook, and logs no secret."""

import shutil
import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from receiver import SECRET, Receiver
from tiny import write_study

from xsweep.db import status
from xsweep.db.engine import connect
from xsweep.orchestrator.runtime.ray_cluster import free_port

pytestmark = [pytest.mark.slow(7), pytest.mark.timeout(600)]


def scrape(port: int) -> str | None:
    try:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.read().decode()
    except urllib.error.URLError:
        return None


def test_a_job_that_fails_for_good_stops_what_needs_it_alone_and_is_announced(guest):
    grid = write_study(guest.folder, objectives=("infonce",))
    damaged = shutil.copytree(guest.folder / "backbone", guest.folder / "damaged")
    (damaged / "model.safetensors").write_bytes(b"no weights")
    another = "  - {folder: damaged, label: Damaged}\nteachers:"
    grid.write_text(grid.read_text().replace("teachers:", another, 1))
    receiver, port = Receiver(503, 200), free_port()
    guest.environment |= {
        "XSWEEP_WEBHOOK": receiver.url,
        "XSWEEP_METRICS_PORT": str(port),
    }
    guest.command("submit", "tiny.yaml", "--no-start")
    controller = guest.start("run")
    lines, text = [], None
    for line in controller.stdout:
        lines.append(line)
        text = scrape(port) or text
    assert controller.wait(timeout=240) == 1, "one backbone cannot be loaded"
    receiver.close()

    assert text
    values = {
        (sample.name, sample.labels.get("kind"), sample.labels.get("state")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert ("xsweep_jobs", "train", "done") in values or (
        "xsweep_jobs",
        "train",
        "running",
    ) in values
    assert scrape(port) is None, "the port is free again"

    taken = receiver.bodies[1:]  # the first one was refused, and sent again
    assert taken[0] == receiver.bodies[0]
    failed = [job for body in taken if body["event"] == "failed" for job in body["jobs"]]
    assert {job["failure"] for job in failed} == {"DATA"}
    assert {job["name"].split()[1] for job in failed} == {"Damaged"}
    [finished] = [body for body in taken if body["event"] == "finished"]
    assert finished["sweep"] == "tiny"
    assert finished["failed"] == len(failed)
    assert SECRET not in "".join(lines)

    engine = connect(f"sqlite:///{guest.home}/xsweep.db")
    ended = {(job.kind, job.name.split()[1]): job for job in status.list_jobs(engine)}
    engine.dispose()
    assert ended["train", "Damaged"].state == "failed"
    assert ended["train", "Damaged"].token == 1, "it would fail again"
    assert ended["evaluate", "Damaged"].state == "skipped"
    assert ended["evaluate", "Tiny"].state == "done"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "XSWEEP_WEBHOOK",
            f"ftp://host/{SECRET}",
            "XSWEEP_WEBHOOK is not an http:// or https:// URL",
        ),
        ("XSWEEP_METRICS_PORT", "taken", "choose another --metrics-port"),
    ],
)
def test_wrong_monitoring_settings_are_refused_before_ray_starts(workplace, name, value, message):
    write_study(workplace.folder)
    workplace.command("submit", "tiny.yaml", "--no-start")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        workplace.environment[name] = taken if value == "taken" else value
        output = workplace.xsweep("run", code=3)
    assert message in output
    assert SECRET not in output
    assert not list(workplace.home.glob("ray-*.json"))
