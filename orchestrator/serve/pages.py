"""The pages of `xsweep serve`: sweeps, heat maps, jobs, logs and training curves.

They show the database and the store, and change neither. In a heat map, colours rank a column's
values and marks show states, so that neither depends on the other.
"""

import json
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
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
from xsweep.db.status import JobGroup
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
MAX_SEEDS, MAX_ROWS, MAX_OTHERS = 8, 100, 200
"""Jobs that a tile links, rows of a heat map, and links below it; the rest is counted."""
TAIL_BYTES, WHOLE_LOG_BYTES = 32_000, 5_000_000
LISTED_JOBS, LISTED_EVENTS = 1_000, 200
REFRESH_S = 15
REFRESH_TIMES = 50
"""A page that changes is renewed every 15 s, but at most for 1/50 of a core."""


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
    counts: dict[str, int]
    """Jobs in each state, the worst first."""
    seeds: tuple[Seed, ...]
    """Its jobs by id; none where there are more than `MAX_SEEDS`."""
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


def heat_map(
    found: Sequence[JobGroup],
    measure: str | None = None,
    progress: Mapping[int, Mapping[str, Any] | None] = {},
) -> HeatMap:
    """The heat map of a sweep's jobs by a measure, by default nDCG, if there is one.

    `progress` is that of running jobs, by id.
    """
    names = {name for group in found for name in group.means}
    measures = tuple(sorted(names, key=lambda name: (not name.startswith("nDCG"), name)))
    chosen = measure if measure in measures else next(iter(measures), None)
    tiles: dict[tuple[Row, str], list[JobGroup]] = defaultdict(list)
    others: dict[str, list[Seed]] = defaultdict(list)
    tested = {row_of(group.labels)[1:] for group in found if group.kind == "evaluate"}
    for group in found:
        row, column = row_of(group.labels), _column(group)
        if column and (group.kind == "evaluate" or row[1:] in tested):
            tiles[row, column].append(group)
        else:
            others[group.kind] += _seeds(group, progress)
    columns = dict.fromkeys(column for _, column in tiles)
    values: dict[str, dict[Row, float]] = {column: {} for column in columns}
    for (row, column), tile in tiles.items():
        scored = [group for group in tile if chosen in group.means]
        seeds = [seed for group in scored for _, seed in group.jobs]
        # two results of one seed have different settings, which no mean may mix
        if scored and len(set(seeds)) == len(seeds):
            values[column][row] = sum(group.means[str(chosen)] for group in scored) / len(seeds)
    return HeatMap(
        measure=chosen,
        measures=measures,
        columns=tuple(sorted(columns, key=lambda column: column != TRAINING)),
        rows=tuple(dict.fromkeys(row for row, _ in tiles)),
        tiles={
            (row, column): _tile(tile, values[column].get(row), values[column].values(), progress)
            for (row, column), tile in tiles.items()
        },
        others=dict(others),
    )


def _column(group: JobGroup) -> str | None:
    if group.kind == "evaluate":
        return str(group.labels.get("collection") or "")
    is_cell = group.kind == "train" and "backbone" in group.labels and "trial" not in group.labels
    return TRAINING if is_cell else None


def _tile(
    groups: list[JobGroup],
    value: float | None,
    column: Collection[float],
    progress: Mapping[int, Mapping[str, Any] | None],
) -> Tile:
    level = None
    if value is not None:
        low, high = min(column), max(column)
        level = round((value - low) / (high - low) * (LEVELS - 1)) if high > low else LEVELS - 1
    counts = Counter[str]()
    for group in groups:
        counts[group.state] += len(group.jobs)
    seeds: list[Seed] = []
    if counts.total() <= MAX_SEEDS:
        seeds = sorted(seed for group in groups for seed in _seeds(group, progress))
    ordered = {str(state): counts[state] for state in MARKS if counts[state]}
    return Tile(next(iter(ordered)), ordered, tuple(seeds), value, level)


def _seeds(group: JobGroup, progress: Mapping[int, Mapping[str, Any] | None]) -> list[Seed]:
    note = f"{group.state} {group.failure or ''}".strip()
    return [
        Seed(job_id, label, group.state, note + _percent(progress.get(job_id)))
        for job_id, label in group.jobs
    ]


def _percent(progress: Mapping[str, Any] | None) -> str:
    if not progress or not progress.get("total"):
        return ""
    return f" {100 * progress['done'] // progress['total']:.0f}%"


@dataclass(frozen=True)
class Site:
    """Answers requests; `engine` should be read-only, and `store` may be missing."""

    engine: Engine
    store: Store
    database: str
    """The database's name on the pages."""

    def respond(self, request: Request) -> Answer:
        """The answer to a request; an error becomes a page with its message."""
        began_s = time.thread_time()
        answer = self._answer(request)
        if answer.refresh_s is None:
            return answer
        took_s = time.thread_time() - began_s
        return answer._replace(refresh_s=max(answer.refresh_s, REFRESH_TIMES * took_s))

    def _answer(self, request: Request) -> Answer:
        try:
            match request.parts:
                case ():
                    return self._index()
                case ("style.css",):
                    return Answer(_render("style.css"), "text/css")
                case ("metrics",):
                    return Answer(as_text(self.engine), PROMETHEUS)
                case ("sweep", name):
                    return self._sweep(name, request.options)
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

    def _sweep(self, name: str, options: dict[str, str]) -> Answer:
        found = status.summary(self.engine, name)
        [sweep] = found.sweeps
        running = {job.job_id: job.progress for job in found.running}
        whole = heat_map(status.groups(self.engine, sweep.id), options.get("measure"), running)
        words = options.get("row", "").casefold().split()
        rows = [
            row for row in whole.rows if all(word in " ".join(row).casefold() for word in words)
        ]
        first = int(options["from"]) if options.get("from", "").isdecimal() else 0
        return _page(
            "sweep",
            refresh=bool(count(sweep, OPEN)),
            sweep=sweep,
            found=found,
            progress=progress_text(sweep, found),
            map=whole,
            rows=rows,
            first=first,
            options=options,
            max_rows=MAX_ROWS,
            max_others=MAX_OTHERS,
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
    return Answer(_render(f"{name}.html", **values), refresh_s=REFRESH_S if refresh else None)


def _message(text: str, code: HTTPStatus) -> Answer:
    return _page("message", text=text, code=code)._replace(status=code)
