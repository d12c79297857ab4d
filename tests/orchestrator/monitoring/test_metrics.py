"""The job table as metrics: numbers by hand, the format by Prometheus' own parser."""

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from job_table import expire, fail, finish, new_job, submit, take
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine

from xsweep.db import controllers, jobs
from xsweep.db.engine import connect
from xsweep.orchestrator.monitoring.metrics import as_text, serving_metrics
from xsweep.orchestrator.runtime.ray_cluster import free_port


def parsed(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Values by name and sorted labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_everything_is_counted(engine: Engine) -> None:
    grid = [new_job(name) for name in ("a", "b", "c", "d")]
    submit(engine, [*grid, new_job("e", kind="evaluate"), new_job("f", "e", kind="evaluate")])
    submit(engine, [new_job("a")], name='tw"in\\\n')
    controllers.register(engine, owner="alice", host="h", pid=7)
    finish(engine, take(engine, kinds=["train"]))
    fail(engine, take(engine, kinds=["train"]), "DATA")
    lost = take(engine, kinds=["train"])
    expire(engine, lost)
    assert jobs.requeue_expired(engine, lost.lease)
    running = [take(engine, kinds=["train"]), take(engine, kinds=["train"])]
    progress = {each.lease: {"pairs_per_s": 10.5} for each in running}
    jobs.renew(engine, list(progress), lease_s=60, progress=progress)
    found = parsed(as_text(engine))

    def value(name: str, **labels: str) -> float | None:
        return found.get((name, tuple(sorted(labels.items()))))

    study = {"sweep": "study", "kind": "train"}
    assert value("xsweep_jobs", **study, state="done") == 1
    assert value("xsweep_jobs", **study, state="failed") == 1
    assert value("xsweep_jobs", **study, state="running") == 2
    assert value("xsweep_jobs", sweep="study", kind="evaluate", state="waiting") == 1
    assert value("xsweep_jobs", sweep='tw"in\\\n', kind="train", state="done") == 1
    assert value("xsweep_attempts_total", outcome="done") == 1
    assert value("xsweep_failures_total", failure="DATA") == 1
    assert value("xsweep_failures_total", failure="NODE") == 1
    assert value("xsweep_leases_lost_total") == 1
    assert value("xsweep_running_attempts", kind="train") == 2
    assert value("xsweep_pairs_per_second", kind="train") == 21
    assert value("xsweep_controllers") == 1
    assert 0 <= (value("xsweep_queue_age_seconds") or 0) < 60


def test_every_metric_has_a_type_and_a_help_text(engine: Engine) -> None:
    submit(engine, [new_job("a")])
    families = list(text_string_to_metric_families(as_text(engine)))
    assert len(families) == 8
    for family in families:
        assert family.documentation
        assert family.type in ("gauge", "counter")
        assert all(sample.name.startswith("xsweep_") for sample in family.samples)


def test_a_table_without_jobs_is_no_error(engine: Engine) -> None:
    assert parsed(as_text(engine))[("xsweep_queue_age_seconds", ())] == 0


def test_metrics_are_served_on_loopback_only_until_the_end(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'xsweep.db'}", create=True)
    submit(engine, [new_job("a")])
    port = free_port()
    with serving_metrics(engine, port):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            ready = (("kind", "train"), ("state", "ready"), ("sweep", "study"))
            assert parsed(answer.read().decode())["xsweep_jobs", ready] == 1
        sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        assert [s[1] for s in sockets if s[1].endswith(f":{port:04X}") and s[3] == "0A"] == [
            f"0100007F:{port:04X}"
        ]
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20)
    engine.dispose()


def test_the_command_prints_metrics_without_importing_ray_or_torch(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'xsweep.db'}"
    engine = connect(url, create=True)
    submit(engine, [new_job("a")])
    engine.dispose()
    program = (
        "import sys; from xsweep.orchestrator.cli.app import app; import xsweep.orchestrator.cli\n"
        "from typer.testing import CliRunner\n"
        f"found = CliRunner().invoke(app, ['--db', {url!r}, 'metrics'], prog_name='xsweep')\n"
        "print(found.stdout, end='')\n"
        "print(sorted({'ray', 'torch', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == "[]\n"
    assert parsed(done.stdout)[("xsweep_controllers", ())] == 0
