"""Trackers: curves of trainings, test scores and tables, sent to W&B, MLflow, Trackio, TensorBoard.

A relay reads what workers leave in the store, in a process of its own: workers hold no credentials,
and a tracker that is slow, broken or away delays nobody. What it missed is sent later. A file keeps
which steps were sent, so that a job has one run in the tracker, however often either side starts.
"""

import io
import json
import logging
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from filelock import FileLock, Timeout
from sqlalchemy import Engine

from xsweep.db.explain import leaves
from xsweep.db.results import Training, load_trainings
from xsweep.db.schema import OPEN
from xsweep.db.status import OverviewRow, overview, sweeps
from xsweep.errors import SetupError, first_line
from xsweep.evaluator.data.files import atomic_write
from xsweep.evaluator.provenance import without_places
from xsweep.orchestrator.forecast.eta import count
from xsweep.orchestrator.report import load_report, render
from xsweep.orchestrator.report.report import Report, ReportOptions
from xsweep.orchestrator.settings import SECRETS
from xsweep.orchestrator.storage.store import Store

log = logging.getLogger("xsweep")

LOOK_EVERY_S = 10.0
LOOK_INTERVALS = 100
"""Looks are at least this many times their own CPU time apart: at most 1% of a core."""
LOCK_S = 20.0
"""Time for the relay of an earlier controller to end."""
AXES = ("backbone", "objective", "teacher", "seed")
MLFLOW_BATCH = 100
"""Values in one request; MLflow refuses more than 100 parameters."""
Record = dict[str, float]
"""Figures of a step, as a line of `metrics.jsonl`: `{"step": 10, "loss": 0.5}`."""


class TrackedRun(NamedTuple):
    """One job as a tracker shows it."""

    sweep: str
    """Project, or experiment, that holds the run."""
    id: str
    name: str
    config: Mapping[str, Any] = {}

    @property
    def key(self) -> tuple[str, str]:
        """Sweep and id."""
        return self.sweep, self.id

    @property
    def unique_name(self) -> str:
        """A name that no other job has, for trackers that know runs by name."""
        return f"{self.name.replace(' ', '_')}-{self.id[:8]}"


class Tracker(Protocol):
    """A destination; every method makes or resumes the run that it names."""

    def log(self, run: TrackedRun, records: Sequence[Record]) -> None:
        """Add records, whose steps ascend, after those sent before."""

    def finish(self, run: TrackedRun, scores: Mapping[str, float], step: int) -> None:
        """Add the scores on test collections, as of a step, and end the run."""

    def publish(self, run: TrackedRun, report: Report) -> None:
        """Add the table of a sweep to a run of its own, and end it."""

    def close(self) -> None:
        """Send what is left; runs stay resumable."""


class Wandb:
    """Weights & Biases; with WANDB_MODE=offline, folders for `wandb sync`."""

    def __init__(self, folder: Path) -> None:
        import wandb

        self.wandb, self.folder = wandb, os.environ.get("WANDB_DIR") or str(folder)
        self.runs: dict[tuple[str, str], Any] = {}

    def _run(self, run: TrackedRun) -> Any:
        if (key := run.key) not in self.runs:
            quiet: dict[str, Any] = {"silent": True, "console": "off", "x_disable_stats": True}
            quiet |= {"disable_git": True, "save_code": False, "x_disable_meta": True}
            self.runs[key] = self.wandb.init(
                project=os.environ.get("WANDB_PROJECT") or run.sweep,
                group=run.sweep,
                id=run.id,
                name=run.name,
                config=dict(run.config),
                dir=self.folder,
                resume="allow",
                reinit="create_new",
                settings=self.wandb.Settings(**quiet),
            )
        return self.runs[key]

    def log(self, run: TrackedRun, records: Sequence[Record]) -> None:
        for record in records:
            figures = {name: value for name, value in record.items() if name != "step"}
            self._run(run).log(figures, step=int(record["step"]))

    def finish(self, run: TrackedRun, scores: Mapping[str, float], step: int) -> None:
        self._run(run).summary.update(dict(scores))
        self.runs.pop(run.key).finish()

    def publish(self, run: TrackedRun, report: Report) -> None:
        self._run(run).log({"results": self.wandb.Table(dataframe=_frame(report))})
        self.finish(run, {}, 0)

    def close(self) -> None:
        while self.runs:
            self.runs.popitem()[1].finish()


class Mlflow:
    """MLflow at MLFLOW_TRACKING_URI, by default a SQLite file; runs have the tag `xsweep.job`."""

    def __init__(self, folder: Path) -> None:
        from mlflow import MlflowClient, entities

        # it prints the URL of each run, with the password in it
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self.artifacts = None if given else str(folder / "mlflow-artifacts")
        self.client = MlflowClient(given or f"sqlite:///{folder / 'mlflow.db'}")
        self.entities = entities
        self.ids: dict[tuple[str, str], str] = {}

    def _run(self, run: TrackedRun) -> str:
        if (key := run.key) not in self.ids:
            known = self.client.get_experiment_by_name(run.sweep)
            experiment = (
                known.experiment_id
                if known
                else self.client.create_experiment(run.sweep, self.artifacts)
            )
            found = list(self.client.search_runs([experiment], f"tags.`xsweep.job` = '{run.id}'"))
            if not found:
                tags = {"xsweep.job": run.id}
                found = [self.client.create_run(experiment, tags=tags, run_name=run.name)]
            self.ids[key] = found[0].info.run_id
            if not found[0].data.params:
                parameters = [
                    self.entities.Param(_plain(name), str(value)[:6000])
                    for name, value in run.config.items()
                ]
                self._send(self.ids[key], "params", parameters)
        return self.ids[key]

    def _send(self, run_id: str, kind: str, values: list[Any]) -> None:
        for start in range(0, len(values), MLFLOW_BATCH):
            batch: dict[str, Any] = {kind: values[start : start + MLFLOW_BATCH]}
            self.client.log_batch(run_id, **batch)

    def log(self, run: TrackedRun, records: Sequence[Record]) -> None:
        at_ms = int(time.time() * 1000)
        metrics = [
            self.entities.Metric(_plain(name), value, at_ms, int(record["step"]))
            for record in records
            for name, value in record.items()
            if name != "step"
        ]
        self._send(self._run(run), "metrics", metrics)

    def finish(self, run: TrackedRun, scores: Mapping[str, float], step: int) -> None:
        self.log(run, [{"step": step, **scores}])
        self.client.set_terminated(self._run(run))

    def publish(self, run: TrackedRun, report: Report) -> None:
        self.client.log_text(self._run(run), render(report, "csv"), "results.csv")
        self.client.set_terminated(self._run(run))

    def close(self) -> None: ...


class Trackio:
    """Trackio: a SQLite file in TRACKIO_DIR, or TRACKIO_SPACE_ID or TRACKIO_SERVER_URL."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
        import trackio

        self.trackio = trackio

    def _add(self, run: TrackedRun, *points: tuple[dict[str, Any], int | None]) -> None:
        quiet: dict[str, Any] = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        opened = self.trackio.init(
            project=run.sweep,
            name=run.unique_name,  # it resumes runs by name
            config=dict(run.config),
            resume="allow",
            **quiet,
        )
        for values, step in points:
            opened.log(values, step=step)
        opened.finish()

    def log(self, run: TrackedRun, records: Sequence[Record]) -> None:
        figures = [dict(record) for record in records]
        self._add(run, *((each, int(each.pop("step"))) for each in figures))

    def finish(self, run: TrackedRun, scores: Mapping[str, float], step: int) -> None:
        if scores:
            self._add(run, (dict(scores), step))

    def publish(self, run: TrackedRun, report: Report) -> None:
        self._add(run, ({"results": self.trackio.Table(dataframe=_frame(report))}, None))

    def close(self) -> None: ...


class TensorBoard:
    """Event files, `SWEEP/RUN` below one folder: `tensorboard --logdir`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.open, self.folder = SummaryWriter, folder / "tensorboard"
        self.boards: dict[tuple[str, str], Any] = {}

    def _board(self, run: TrackedRun) -> Any:
        if run.key not in self.boards:
            path = self.folder / run.sweep / run.unique_name
            self.boards[run.key] = self.open(str(path), filename_suffix=f".{time.time_ns()}")
        return self.boards[run.key]

    def log(self, run: TrackedRun, records: Sequence[Record]) -> None:
        for record in records:
            for name in record.keys() - {"step"}:
                self._board(run).add_scalar(_plain(name), record[name], int(record["step"]))
        self._board(run).flush()

    def finish(self, run: TrackedRun, scores: Mapping[str, float], step: int) -> None:
        self.log(run, [{"step": step, **scores}])
        self.boards.pop(run.key).close()

    def publish(self, run: TrackedRun, report: Report) -> None:
        self._board(run).add_text("results", render(report, "markdown"))
        self.boards.pop(run.key).close()

    def close(self) -> None:
        for board in self.boards.values():
            board.close()


_OPEN: dict[str, Callable[[Path], Tracker]] = {
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
    "tensorboard": TensorBoard,
}


def require(trackers: Sequence[str]) -> None:
    """Raise SetupError where the package of a tracker is missing."""
    for name in trackers:
        if find_spec(name) is None:
            raise SetupError(f"tracker {name}: its package is missing: pip install xsweep[{name}]")


class Relay:
    """Sends what one tracker has not received; only one process at a time does so."""

    def __init__(self, name: str, home: Path, engine: Engine, store: Store) -> None:
        """Raise SetupError where the package is missing, or another process sends."""
        require([name])
        self.name, self.engine, self.store = name, engine, store
        self.folder = home / "trackers"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"{name}.json"
        self.lock = FileLock(self.folder / f"{name}.lock")
        try:
            self.lock.acquire(timeout=LOCK_S)
        except Timeout:
            raise SetupError(
                f"a controller sends to {name} already: its log is {home}/logs/{name}.log"
            ) from None
        self.sent: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        """By sweep and job: [last step, number of scores, once complete]; by sweep: its results."""
        self._tracker: Tracker | None = None

    @property
    def tracker(self) -> Tracker:
        """The tracker, opened when it is first needed: it may be away."""
        if self._tracker is None:
            self._tracker = _OPEN[self.name](self.folder)
        return self._tracker

    def forget(self, sweep: str) -> None:
        """Send everything of a sweep again."""
        self.sent = {key: value for key, value in self.sent.items() if key.split("/")[0] != sweep}

    def send(self, sweep: str) -> int:
        """Send what is new of a sweep; returns the number of runs that could not be sent."""
        rows, failed = overview(self.engine, sweep), 0
        scores, unfinished = _scores(rows)
        for training in load_trainings(self.engine, sweep):
            axes = _axes(training.labels)
            final = training.state == "done" and axes not in unfinished
            own = {} if "trial" in training.labels else scores[axes]
            failed += not self._try(training.name, self._send, sweep, training, own, final)
        if rows and not any(row.state in OPEN for row in rows):
            failed += not self._try(f"the table of {sweep}", self._publish, sweep, rows)
        return failed

    def _try(self, what: str, work: Callable[..., None], *arguments: Any) -> bool:
        try:
            work(*arguments)
        except Exception as error:  # each tracker has errors of its own
            log.warning(
                "tracker   %s: %s is not sent yet: %s", self.name, what, without_secrets(error)
            )
            return False
        return True

    def _send(
        self, sweep: str, training: Training, scores: Mapping[str, float], final: bool
    ) -> None:
        key = f"{sweep}/{training.identity}"
        last, scored = self.sent.get(key, (0, None))
        if scored == len(scores) or not training.folder:
            return
        name = training.name.removeprefix("train ")
        run = TrackedRun(sweep, training.identity[:32], name, _config(training))
        records = read_records(self.store, training.folder, after_step=last)
        if records:
            self.tracker.log(run, records)
            last = int(records[-1]["step"])
            self._save(key, (last, None))
        if final:
            self.tracker.finish(run, scores, last)
            self._save(key, (last, len(scores)))

    def _publish(self, sweep: str, rows: Sequence[OverviewRow]) -> None:
        evaluated = sorted(row.job_id for row in rows if row.means)
        if not evaluated or self.sent.get(sweep) == evaluated:
            return
        measures = sorted({measure for row in rows for measure in row.means})
        report = load_report(self.engine, sweep, ReportOptions(measures=measures))
        self.tracker.publish(TrackedRun(sweep, f"table-{sweep}", "table"), report)
        self._save(sweep, evaluated)

    def _save(self, key: str, value: Any) -> None:
        self.sent[key] = value
        with atomic_write(self.path) as draft:
            draft.write_text(json.dumps(self.sent))

    def close(self) -> None:
        """Send what is left and let others send."""
        if self._tracker:
            self._try("the rest", self._tracker.close)
        self.lock.release()


def follow(relay: Relay, ended: Callable[[float], bool]) -> None:
    """Send what is new of all sweeps until `ended(pause_s)` is true, and once more then."""
    settled: dict[str, dict[str, dict[str, int]]] = {}
    last = False
    while True:
        began_s = time.process_time()
        try:
            for each in sweeps(relay.engine):
                if settled.get(each.name) != each.counts and not relay.send(each.name):
                    settled |= {} if count(each, OPEN) else {each.name: each.counts}
        except Exception as error:  # the database is away, or a sweep was dropped
            log.warning("tracker   %s: %s", relay.name, without_secrets(error))
        if last:
            return
        last = ended(max(LOOK_EVERY_S, LOOK_INTERVALS * (time.process_time() - began_s)))


def read_records(store: Store, folder: str, after_step: int) -> list[Record]:
    """The records of an attempt after a step, as far as they are written."""
    path = store.fetch_file(f"{folder}/metrics.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    # the last line may be half written
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [record for record in records if record["step"] > after_step]


def without_secrets(error: BaseException) -> str:
    """The first line of an error's message, without credentials."""
    text = first_line(error)
    for name in SECRETS:
        text = text.replace(os.environ.get(name) or "\0", f"${name}")
    return re.sub(r"//[^/@\s]*@", "//", text)


def _scores(
    rows: Sequence[OverviewRow],
) -> tuple[dict[tuple[Any, ...], dict[str, float]], set[tuple[Any, ...]]]:
    """Test scores of each training by its axes, and those with evaluations to come."""
    scores: dict[tuple[Any, ...], dict[str, float]] = defaultdict(dict)
    unfinished = set()
    for row in rows:
        if row.kind == "evaluate" and row.labels.get("system") == "run":
            axes, place = _axes(row.labels), row.labels["collection"]
            if row.state in OPEN:
                unfinished.add(axes)
            scores[axes] |= {f"test/{place}/{name}": mean for name, mean in row.means.items()}
    return scores, unfinished


def _axes(labels: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(labels.get(name) for name in AXES)


def _config(training: Training) -> dict[str, Any]:
    """Labels and training settings by their own names, all else of the spec as `spec.…`."""
    spec = without_places(training.spec)
    settings = {name: training.labels.get(name) for name in AXES} | spec.pop("optimisation", {})
    rest = {f"spec.{name}": value for name, value in leaves(spec).items()}
    return {name: value for name, value in (settings | rest).items() if value is not None}


def _plain(name: str) -> str:
    """A name of the characters that MLflow and TensorBoard allow."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _frame(report: Report) -> Any:
    import pandas as pd

    return pd.read_csv(io.StringIO(render(report, "csv")))
