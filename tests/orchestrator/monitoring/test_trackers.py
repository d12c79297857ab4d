"""Trackers: read back what each wrote on disk, or what its own server holds."""

import json
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from finished import OWNER, finish_one, run_all, submit_small
from gridtext import write_grid
from sqlalchemy import Engine
from typer.testing import CliRunner
from waiting import wait_for

from xsweep.db import jobs
from xsweep.db.results import load_cells, load_trainings
from xsweep.errors import SetupError
from xsweep.orchestrator.cli import app
from xsweep.orchestrator.monitoring import trackers
from xsweep.orchestrator.monitoring.trackers import Relay
from xsweep.orchestrator.plan import plan_grid, store_plan
from xsweep.orchestrator.runtime import process
from xsweep.orchestrator.settings import Settings
from xsweep.orchestrator.storage.store import Store, attempt_folder

KEY = "5ec2e7" * 6 + "cafe"
"""A credential, 40 digits as W&B's: it must appear in no file and no message."""
STEPS = 40
HALF = STEPS // 2


class Received(NamedTuple):
    """The record of a training in a tracker."""

    loss: list[tuple[int, float]]
    """Step and value, in the tracker's order."""
    score: float
    lr: float | None
    """None: the tracker has no settings."""


Contents = tuple[dict[str, Received], str]
"""Trainings by the first digits of their identity, and a text that holds the table's values."""


def write_curve(store: Path, folder: str, steps: int) -> None:
    """Write what a worker has after so many steps, its last line half written."""
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, steps + 1)]
    (store / folder).mkdir(parents=True, exist_ok=True)
    (store / folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 999, "lo']))


def finish(engine: Engine, store: Path) -> None:
    """Do all jobs; every training gets its whole curve."""
    run_all(engine, store)
    for training in load_trainings(engine, "small"):
        write_curve(store, training.folder or "", STEPS)


@pytest.fixture
def engine(home: Path) -> Iterator[Engine]:
    """Three trainings, each with one evaluation; the first has run half of its steps, then died."""
    engine, store = submit_small(home, ("seeds: [1, 2]", "seeds: [1]")), home / "store"
    while (claim := jobs.claim(engine, owner=OWNER, limit=1, lease_s=60)[0]).kind != "train":
        finish_one(engine, store, claim)
    folder = attempt_folder(claim.kind, claim.identity, claim.token)
    jobs.mark_started(engine, {claim.lease: jobs.Place("a", "n", folder, f"{folder}.log")})
    write_curve(store, folder, HALF)
    yield engine
    engine.dispose()


def lose_worker(engine: Engine) -> None:
    [claim] = [each for each in jobs.running(engine) if each.kind == "train"]
    jobs.fail(engine, claim.lease, failure="NODE", reason="it is gone", retry_after_s=0)


def send(name: str, home: Path, engine: Engine) -> int:
    """Send as a controller's relay does in its life; returns what could not be sent."""
    relay = Relay(name, home, engine, Store(home / "store"))
    try:
        return relay.send("small")
    finally:
        relay.close()


def in_wandb(folder: Path) -> Contents:
    """The records of all offline folders, which `wandb sync` would upload in this order."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        run = found.setdefault(
            path.stem.removeprefix("run-"), {"loss": [], "config": {}, "last": {}}
        )
        for content in leveldb_log(path.read_bytes()):
            record = Record.FromString(content)
            for item in record.run.config.update:
                run["config"][item.key] = json.loads(item.value_json)
            row = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            if "loss" in row:
                run["loss"].append((row["_step"], row["loss"]))
            for item in record.summary.update:
                run["last"][item.key] = json.loads(item.value_json)
    del found["table-small"]
    [path] = folder.glob("wandb/offline-run-*/files/media/table/*.json")
    score = "test/apidocs/test/nDCG@10"
    return {
        id_[:8]: Received(run["loss"], run["last"][score], run["config"]["lr"])
        for id_, run in found.items()
    }, path.read_text()


def leveldb_log(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB, after a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def in_mlflow(folder: Path, uri: str = "") -> Contents:
    from mlflow import MlflowClient

    client = MlflowClient(uri or f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    found, text = {}, ""
    for run in client.search_runs([experiment.experiment_id]):
        job, id_ = run.data.tags["xsweep.job"], run.info.run_id
        assert run.info.status == "FINISHED"
        if job == "table-small":
            text = Path(client.download_artifacts(id_, "results.csv")).read_text()
            continue
        assert job[:8] not in found
        loss = [(each.step, each.value) for each in client.get_metric_history(id_, "loss")]
        score = run.data.metrics["test/apidocs/test/nDCG_10"]
        found[job[:8]] = Received(loss, score, float(run.data.params["lr"]))
    return found, text


def in_trackio(folder: Path) -> Contents:
    with sqlite3.connect(folder / "trackio" / "small.db") as database:
        rows = database.execute(
            "SELECT run_name, step, metrics FROM metrics ORDER BY id"
        ).fetchall()
        configs = dict(database.execute("SELECT run_name, config FROM configs").fetchall())
    found: dict[str, Received] = {}
    for name in {name for name, _, _ in rows if not name.startswith("table")}:
        own = [(step, json.loads(values)) for run, step, values in rows if run == name]
        loss = [(step, values["loss"]) for step, values in own if "loss" in values]
        [score] = [v["test/apidocs/test/nDCG@10"] for _, v in own if "loss" not in v]
        found[name[-8:]] = Received(loss, score, json.loads(configs[name])["lr"])
    [table] = [values for name, _, values in rows if name.startswith("table")]
    return found, str(table)


def in_tensorboard(folder: Path) -> Contents:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found, text = {}, ""
    for path in (folder / "tensorboard" / "small").iterdir():
        events = EventAccumulator(str(path)).Reload()
        if path.name.startswith("table"):
            [event] = events.Tensors("results/text_summary")
            text = event.tensor_proto.string_val[0].decode()
            continue
        loss = [(each.step, each.value) for each in events.Scalars("loss")]
        [score] = events.Scalars("test/apidocs/test/nDCG_10")
        found[path.name[-8:]] = Received(loss, score.value, None)
    return found, text


READERS: dict[str, Callable[[Path], Contents]] = {
    "wandb": in_wandb,
    "mlflow": in_mlflow,
    "trackio": in_trackio,
    "tensorboard": in_tensorboard,
}


def check_contents(engine: Engine, contents: Contents) -> None:
    """Each job is one run with each step once, its test score and its settings; one table."""
    received, table = contents
    lrs = {"L6": 1e-5, "L3": 3e-5}
    trainings = {each.identity[:8]: each for each in load_trainings(engine, "small")}
    assert received.keys() == trainings.keys()
    for cell in load_cells(engine, "small"):
        [mean] = cell.means.values()
        assert str(mean)[:8] in table or f"{mean:.3f}"[1:] in table
        if cell.labels["system"] == "run":
            run = received[cell.parents_summary["run"].identity[:8]]
            assert [step for step, _ in run.loss] == list(range(1, STEPS + 1))
            assert run.loss[-1][1] == pytest.approx(1 / STEPS)
            assert run.score == pytest.approx(mean)
            assert run.lr in (lrs[cell.labels["backbone"]], None)


@pytest.mark.slow(4)
@pytest.mark.parametrize("name", READERS)
def test_a_job_is_one_run_with_each_step_once_however_often_worker_and_relay_start(
    name, home, engine, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("TRACKIO_DIR", str(home / "trackers" / "trackio"))
    assert send(name, home, engine) == 0
    lose_worker(engine)
    finish(engine, home / "store")
    assert send(name, home, engine) == 0
    before = json.loads((home / "trackers" / f"{name}.json").read_text())
    assert send(name, home, engine) == 0, "the third has nothing to send"
    assert json.loads((home / "trackers" / f"{name}.json").read_text()) == before
    check_contents(engine, READERS[name](home / "trackers"))
    files = [path for path in home.rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_scores_of_an_extended_sweep_follow(home, engine):
    lose_worker(engine)
    finish(engine, home / "store")
    assert send("tensorboard", home, engine) == 0
    settings = settings_of(home)
    two = ("depth: 20", "first_stage: [bm25, {bm25: {k1: 1.2}, label: tuned}], depth: 20")
    grid = write_grid(home, ("seeds: [1, 2]", "seeds: [1]"), two)
    store_plan(settings.database, plan_grid(grid, settings))
    run_all(engine, home / "store")
    assert send("tensorboard", home, engine) == 0

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for run in (home / "trackers" / "tensorboard" / "small").glob("L*"):
        events = EventAccumulator(str(run)).Reload()
        tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("test/")}
        assert {f"test/apidocs/test_{stage}_/nDCG_10" for stage in ("_BM25", "_tuned")} <= {
            tag.replace(" ", "_") for tag in tags
        }
        assert len(events.Scalars("loss")) == STEPS


@pytest.fixture
def mlflow_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Starts MLflow's own server on loopback, at the URL that the environment names."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:{KEY}@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    started = []

    def start() -> str:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--workers", "1", "--backend-store-uri", "sqlite:///m.db"]
        log = (home / "server.log").open("w")
        started.append(subprocess.Popen(command, cwd=home, stdout=log, stderr=log))
        wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        return f"http://127.0.0.1:{port}"

    yield start
    for server in started:
        for each in (*psutil.Process(server.pid).children(recursive=True), server):
            each.kill()
        server.wait()


@pytest.mark.slow(9)
def test_mlflows_own_server_gets_all_once_it_is_up(home, engine, mlflow_server, caplog, capfd):
    lose_worker(engine)
    finish(engine, home / "store")
    assert send("mlflow", home, engine) == 4, "three runs and the table"
    assert "train L6 infonce bm25 s1 is not sent yet" in caplog.text
    url = mlflow_server()
    assert send("mlflow", home, engine) == 0
    assert KEY not in caplog.text + "".join(capfd.readouterr())
    check_contents(engine, in_mlflow(home, url))


def test_the_log_names_no_credential(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    error = ConnectionError(f"https://me:word@host/x refused the key {KEY}\nmore")
    text = trackers.without_secrets(error)
    assert text == "https://host/x refused the key $WANDB_API_KEY"


def settings_of(home: Path, *names: str) -> Settings:
    return Settings(
        home=home,
        database=f"sqlite:///{home}/.xsweep/xsweep.db",
        store=str(home / "store"),
        ray_address=None,
        data_home=None,
        trackers=names,
    )


@pytest.mark.slow(3)
def test_a_controllers_relay_sends_the_rest_before_it_ends(home, engine):
    with process._tracking(settings_of(home, "tensorboard")):
        lose_worker(engine)
        finish(engine, home / "store")
    check_contents(engine, in_tensorboard(home / "trackers"))


@pytest.mark.slow(3)
def test_a_tracker_that_hangs_delays_no_controller(home, engine, monkeypatch, caplog):
    monkeypatch.setattr(process, "TRACKED_S", 0.5)
    with process._tracking(settings_of(home, "wandb")):
        wait_for((home / "trackers" / "wandb.lock").exists)
        [relay] = [each for each in psutil.Process().children() if each.cmdline()[-1] == "wandb"]
        relay.send_signal(signal.SIGSTOP)
        left_s = time.monotonic()
    assert time.monotonic() - left_s < 10
    assert "wandb: not all is sent: later, xsweep track --to wandb" in caplog.text
    assert not relay.is_running()


def test_two_relays_never_send_to_one_tracker(home, engine, monkeypatch):
    monkeypatch.setattr(trackers, "LOCK_S", 0.0)
    first = Relay("tensorboard", home, engine, Store(home / "store"))
    with pytest.raises(SetupError, match="sends to tensorboard already"):
        Relay("tensorboard", home, engine, Store(home / "store"))
    first.close()


def test_a_missing_package_is_named_before_anything_runs(home, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install xsweep\[wandb\]"):
        process.run(settings_of(home, "wandb"))


def test_a_finished_sweep_is_sent_afterwards_and_again_on_request(home, engine, monkeypatch):
    lose_worker(engine)
    finish(engine, home / "store")
    monkeypatch.setenv("XSWEEP_DB", f"sqlite:///{home}/.xsweep/xsweep.db")
    arguments = ["track", "small", "--to", "tensorboard"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    check_contents(engine, in_tensorboard(home / "trackers"))
    shutil.rmtree(home / "trackers" / "tensorboard")
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert not (home / "trackers" / "tensorboard").exists(), "all of it was sent"
    assert CliRunner().invoke(app, [*arguments, "--again"]).exit_code == 0
    check_contents(engine, in_tensorboard(home / "trackers"))
    assert CliRunner().invoke(app, ["track", "small"]).exit_code == 2
