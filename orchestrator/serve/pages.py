"""The pages of `xsweep serve`: sweeps, heat maps, jobs, logs and training curves.

They show the database and the store, and change neither. In a heat map, colours rank a column's
values and marks show states, so that neither depends on the other.
"""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Engine

from xsweep.db import events, jobs, status
from xsweep.db.explain import AttemptRow
from xsweep.db.schema import OPEN, State
from xsweep.db.status import OverviewRow
from xsweep.errors import ConfigError, XsweepError
from xsweep.orchestrator.forecast.eta import count, progress_text
from xsweep.orchestrator.formatting import duration
from xsweep.orchestrator.monitoring.metrics import PROMETHEUS, as_text
from xsweep.orchestrator.report.table import Row, row_of
from xsweep.orchestrator.serve.server import TEXT, Answer, Request
from xsweep.orchestrator.storage.store import Store

if TYPE_CHECKING:
    from jinja2 import Environment

log = logging.getLogger(__name__)

FIGURES = {
    "loss": "loss",
    "validation": "validation",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "pairs_per_s": "pairs per second",
}
"""Keys of `metrics.jsonl` that have a curve, in the page's order, with their captions."""
POINTS = 300
"""Points of a curve; longer ones are averaged, since a screen shows no more."""
WIDTH, HEIGHT = 560, 190
LEFT, RIGHT, TOP, BOTTOM = 64, WIDTH - 14, 28, HEIGHT - 26
"""Size of a curve's picture, and its axes' places in it, in pixels."""
MARKS = {
    State.FAILED: "✕",
    State.CANCELLED: "∅",
    State.SKIPPED: "–",
    State.RUNNING: "▶",
    State.READY: "○",
    State.WAITING: "·",
    State.DONE: "✓",
}
"""Mark of each state, the worst state first: a tile with several jobs has the worst of theirs."""
LEVELS = 9
"""Shades of one hue, from the worst (0) to the best value of a column."""
TRAINING = "training"
"""The heat map's column of trainings."""
READ_FILES = ("metrics.jsonl", "trials.json")
"""Files of an attempt's folder that the page of a job reads."""
TAIL_BYTES, WHOLE_LOG_BYTES = 32_000, 5_000_000
LISTED_JOBS, LISTED_EVENTS = 1_000, 200
REFRESH_S = 15


class Curve(NamedTuple):
    """One figure over training steps; values are finite."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def read_curves(folder: Path) -> list[Curve]:
    """The curves in an attempt's folder; none where it has no `metrics.jsonl` yet."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    # The last line may be half written.
    records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    curves = []
    for key, name in FIGURES.items():
        given = [each for each in records if isinstance(each.get(key), int | float)]
        points = [(each["step"], each[key]) for each in given if math.isfinite(each[key])]
        if points:
            curves.append(Curve(name, *zip(*_averaged(points), strict=True)))
    return curves


def _averaged(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` points: means of neighbours, each at the last step of its own."""
    size = math.ceil(len(points) / POINTS)
    pieces = [points[start : start + size] for start in range(0, len(points), size)]
    return [(piece[-1][0], fmean(value for _, value in piece)) for piece in pieces]


def draw(curve: Curve) -> str:
    """The curve as an SVG element with its ranges at the axes; up to 30 points have dots."""
    first, high = min(curve.steps), max(curve.values)
    x_scale = (RIGHT - LEFT) / ((max(curve.steps) - first) or 1.0)
    y_scale = (BOTTOM - TOP) / ((high - min(curve.values)) or 1.0)
    points = [
        (LEFT + (step - first) * x_scale, TOP + (high - value) * y_scale)
        for step, value in zip(curve.steps, curve.values, strict=True)
    ]
    axes = {"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
    return _render("curve.svg", curve=curve, points=points, width=WIDTH, height=HEIGHT, **axes)


class Seed(NamedTuple):
    """One job of a tile."""

    job_id: int
    label: str
    state: str
    note: str
    """The state in words: `failed NAN`, `running 40%`."""


class Tile(NamedTuple):
    """A tile of the heat map: the jobs of one row and column, one per seed."""

    state: str
    """The worst state of its jobs."""
    seeds: tuple[Seed, ...]
    value: float | None
    """Mean over the seeds that are done."""
    level: int | None
    """Shade of the value, 0 to `LEVELS` - 1."""


@dataclass(frozen=True)
class HeatMap:
    """A sweep's grid; `tiles` has no entry where a row has no job in a column."""

    measure: str | None
    measures: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    tiles: dict[tuple[Row, str], Tile]
    others: dict[str, list[Seed]] = field(default_factory=dict)
    """Jobs of no cell, by kind: those that runs share, and stages before the last."""


def heat_map(found: Sequence[OverviewRow], measure: str | None = None) -> HeatMap:
    """The heat map of a sweep's jobs by a measure; by default nDCG, if there is one."""
    names = {name for job in found for name in job.means}
    measures = tuple(sorted(names, key=lambda name: (not name.startswith("nDCG"), name)))
    chosen = measure if measure in measures else next(iter(measures), None)
    groups: dict[tuple[Row, str], list[OverviewRow]] = defaultdict(list)
    others: dict[str, list[Seed]] = defaultdict(list)
    tested = {row_of(job.labels)[1:] for job in found if job.kind == "evaluate"}
    for job in found:
        row, column = row_of(job.labels), _column(job)
        if column and (job.kind == "evaluate" or row[1:] in tested):
            groups[row, column].append(job)
        else:
            others[job.kind].append(_seed(job))
    columns = dict.fromkeys(column for _, column in groups)
    values: dict[str, dict[Row, float]] = {column: {} for column in columns}
    for (row, column), group in groups.items():
        scored = [job for job in group if chosen and chosen in job.means]
        # two results of one seed have different settings, which no mean may mix
        if scored and len({job.labels.get("seed") for job in scored}) == len(scored):
            values[column][row] = fmean(job.means[str(chosen)] for job in scored)
    return HeatMap(
        measure=chosen,
        measures=measures,
        columns=tuple(sorted(columns, key=lambda column: column != TRAINING)),
        rows=tuple(dict.fromkeys(row for row, _ in groups)),
        tiles={
            (row, column): _tile(group, values[column].get(row), values[column].values())
            for (row, column), group in groups.items()
        },
        others=dict(others),
    )


def _column(job: OverviewRow) -> str | None:
    if job.kind == "evaluate":
        return str(job.labels.get("collection") or "")
    is_cell = job.kind == "train" and "backbone" in job.labels and "trial" not in job.labels
    return TRAINING if is_cell else None


def _tile(group: list[OverviewRow], value: float | None, column: Collection[float]) -> Tile:
    seeds = tuple(map(_seed, group))
    level = None
    if value is not None:
        low, high = min(column), max(column)
        level = round((value - low) / (high - low) * (LEVELS - 1)) if high > low else LEVELS - 1
    states = {seed.state for seed in seeds}
    return Tile(next(state for state in MARKS if state in states), seeds, value, level)


def _seed(job: OverviewRow) -> Seed:
    progress = job.progress or {}
    note = f"{job.state} {job.failure or ''}".strip()
    if job.state == "running" and progress.get("total"):
        note += f" {100 * progress['done'] // progress['total']:.0f}%"
    seed = job.labels.get("seed")
    return Seed(job.job_id, str(seed) if seed is not None else job.name, job.state, note)


@dataclass(frozen=True)
class Site:
    """Answers requests; `engine` should be read-only, and `store` may be missing."""

    engine: Engine
    store: Store
    database: str
    """The database's name on the pages."""

    def respond(self, request: Request) -> Answer:
        """The answer to a request; an error becomes a page with its message."""
        try:
            match request.parts:
                case ():
                    return self._index()
                case ("style.css",):
                    return Answer(_render("style.css"), "text/css")
                case ("metrics",):
                    return Answer(as_text(self.engine), PROMETHEUS)
                case ("sweep", name):
                    return self._sweep(name, request.options.get("measure"))
                case ("sweep", name, "jobs"):
                    return self._jobs(name, request.options)
                case ("job", job):
                    return self._job(job, request.options.get("attempt"))
                case ("job", job, "log"):
                    return self._log(job, request.options.get("attempt"))
            return _message("There is no such page.", HTTPStatus.NOT_FOUND)
        except ConfigError as error:
            return _message(str(error), HTTPStatus.NOT_FOUND)
        except XsweepError as error:
            return _message(str(error), HTTPStatus.SERVICE_UNAVAILABLE)
        except Exception:
            # Details go to the user's own terminal only.
            log.exception("a page failed")
            message = "This page failed; the terminal of xsweep serve shows the error."
            return _message(message, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _index(self) -> Answer:
        found = status.summary(self.engine)
        return _page(
            "index",
            refresh=any(count(sweep, OPEN) for sweep in found.sweeps),
            found=found,
            progress={sweep.id: progress_text(sweep, found) for sweep in found.sweeps},
            database=self.database,
            states=[
                state for state in MARKS if any(count(each, (state,)) for each in found.sweeps)
            ],
        )

    def _sweep(self, name: str, measure: str | None) -> Answer:
        found = status.summary(self.engine, name)
        [sweep] = found.sweeps
        return _page(
            "sweep",
            refresh=bool(count(sweep, OPEN)),
            sweep=sweep,
            found=found,
            progress=progress_text(sweep, found),
            map=heat_map(status.overview(self.engine, sweep.id), measure),
            marks=MARKS,
        )

    def _jobs(self, name: str, options: dict[str, str]) -> Answer:
        state, kind = options.get("state") or None, options.get("kind") or None
        [sweep] = status.summary(self.engine, name).sweeps
        rows = status.list_jobs(self.engine, sweep.id, limit=LISTED_JOBS, state=state, kind=kind)
        return _page("jobs", sweep=sweep, rows=rows, limit=LISTED_JOBS, state=state, kind=kind)

    def _job(self, job: str, token: str | None) -> Answer:
        found, attempt = self._attempt(job, token)
        folder = self._results(attempt.folder) if attempt and attempt.folder else None
        return _page(
            "job",
            refresh=found.state == "running",
            job=found,
            attempt=attempt,
            events=events.history(self.engine, job_id=found.job_id, latest=LISTED_EVENTS),
            trials=_trials(found, folder) if folder else [],
            curves=[draw(curve) for curve in read_curves(folder)] if folder else [],
            tail=self._tail(attempt, TAIL_BYTES),
            spec=json.dumps(found.spec, indent=1),
        )

    def _log(self, job: str, token: str | None) -> Answer:
        _, attempt = self._attempt(job, token)
        return Answer(self._tail(attempt, WHOLE_LOG_BYTES) or "", TEXT)

    def _attempt(self, job: str, token: str | None) -> tuple[jobs.Explanation, AttemptRow | None]:
        """A job, and its attempt with that token; without one, its last attempt."""
        found = jobs.explain(self.engine, job, compare=False)
        attempts = [each for each in found.attempts if not token or str(each.token) == token]
        if token and not attempts:
            raise ConfigError(f"{found.name!r} has no attempt {token}")
        return found, attempts[-1] if attempts else None

    def _results(self, name: str) -> Path:
        """A local folder with the files of an attempt's folder that pages read."""
        folder = self.store.resolve(name)
        copies = [self.store.fetch_file(f"{name}/{each}") for each in READ_FILES]
        return next((copy.parent for copy in copies if copy.exists()), folder)

    def _tail(self, attempt: AttemptRow | None, size_bytes: int) -> str | None:
        """The last lines of an attempt's log; None where there is none.

        Links are followed before the path is checked: none may lead out of the store.
        """
        if attempt is None or not attempt.log:
            return None
        path = self.store.fetch_file(attempt.log)
        if not path.resolve().is_relative_to(self.store.root.resolve()) or not path.is_file():
            return None
        with path.open("rb") as file:
            start = max(0, path.stat().st_size - size_bytes)
            file.seek(start)
            text = file.read(size_bytes).decode(errors="replace")
        return text.partition("\n")[2] if start else text


def _trials(found: jobs.Explanation, folder: Path) -> list[dict[str, Any]]:
    """A search's trials with their jobs, the best first; none for other jobs."""
    try:
        trials = json.loads((folder / "trials.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    ids = {parent.role: parent.job_id for parent in found.parents}
    trials.sort(key=lambda each: math.inf if each["validation"] is None else -each["validation"])
    return [{**each, "job_id": ids.get(each["trial"], found.job_id)} for each in trials]


@cache
def _templates() -> "Environment":
    from xsweep.orchestrator.report.render_html import templates

    environment = templates("xsweep.orchestrator.serve", "xsweep.orchestrator.report")
    environment.filters.update(duration=duration, clock=_clock)
    return environment


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _render(name: str, **values: Any) -> str:
    return _templates().get_template(f"{name}.j2").render(**values)


def _page(name: str, *, refresh: bool = False, **values: Any) -> Answer:
    return Answer(_render(f"{name}.html", refresh_s=REFRESH_S if refresh else None, **values))


def _message(text: str, code: HTTPStatus) -> Answer:
    return _page("message", text=text, code=code)._replace(status=code)
