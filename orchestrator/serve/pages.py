"""The pages: what each shows, from the database and from folders in the store.

A training's curves from its `metrics.jsonl`, as SVG that needs no script and no library.

A sweep's grid as a heat map: a row per system, a column per collection, a place per seed.

A colour says how good a value is among those of its column; a mark says the state, so that neither
needs colours to be read.
"""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup
from sqlalchemy import Engine

from xsweep.db import events, jobs, status
from xsweep.db.schema import OPEN
from xsweep.db.status import OverviewRow, overview
from xsweep.errors import ConfigError, XsweepError
from xsweep.orchestrator.forecast.eta import count, progress_text
from xsweep.orchestrator.formatting import duration
from xsweep.orchestrator.monitoring.metrics import PROMETHEUS, as_text
from xsweep.orchestrator.serve.server import TEXT, Answer, Request
from xsweep.orchestrator.storage.store import Store

if TYPE_CHECKING:
    from jinja2 import Environment


FIGURES = {
    "loss": "loss",
    "validation": "validation",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "pairs_per_s": "pairs per second",
}
"""Which figures are drawn, in this order, and what they are called."""


POINTS = 300
"""So many are told apart on a screen; longer curves are shown as means of neighbours."""


WIDTH, HEIGHT = 560, 190


LEFT, RIGHT, TOP, BOTTOM = 64, 14, 28, 26


class Curve(NamedTuple):
    """One figure over training steps, without what is no finite number."""

    name: str
    steps: list[float]
    values: list[float]


def read_curves(folder: Path) -> list[Curve]:
    """The curves of an attempt's folder; none where it has no `metrics.jsonl` yet."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    # a line that is being written may be there in half
    records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    curves = []
    for key, name in FIGURES.items():
        points = [(each["step"], each[key]) for each in records if _is_finite(each.get(key))]
        if points:
            steps, values = zip(*_thinned(points), strict=True)
            curves.append(Curve(name, list(steps), list(values)))
    return curves


def draw(curve: Curve) -> Markup:
    """The curve as an SVG element with its range at the axes; single values are dots."""
    first, last = min(curve.steps), max(curve.steps)
    low, high = min(curve.values), max(curve.values)
    wide, tall = (last - first) or 1.0, (high - low) or 1.0
    points = [
        (
            LEFT + (step - first) / wide * (WIDTH - LEFT - RIGHT),
            TOP + (high - value) / tall * (HEIGHT - TOP - BOTTOM),
        )
        for step, value in zip(curve.steps, curve.values, strict=True)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{curve.name} over steps">',
        f'<text class="title" x="{LEFT}" y="17">{curve.name}, last {curve.values[-1]:.4g}</text>',
        f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
        f'<text class="end" x="{LEFT - 6}" y="{TOP + 5}">{high:.3g}</text>',
        f'<text class="end" x="{LEFT - 6}" y="{HEIGHT - BOTTOM}">{low:.3g}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 8}">step {first:.0f}</text>',
        f'<text class="end" x="{WIDTH - RIGHT}" y="{HEIGHT - 8}">{last:.0f}</text>',
        f'<polyline class="curve" points="{path}"/>',
        dots if len(points) <= 30 else "",
        "</svg>",
    ]
    return Markup("".join(parts))  # noqa: S704  (numbers and names of ours)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / POINTS)
    pieces = [points[start : start + size] for start in range(0, len(points), size)]
    return [(piece[-1][0], sum(value for _, value in piece) / len(piece)) for piece in pieces]


LEVELS = 9
"""Shades of one hue, from the worst (0) to the best value of a column."""


TRAINING = "training"


MARKS = {
    "waiting": "·",
    "ready": "○",
    "running": "▶",
    "failed": "✕",
    "skipped": "–",
    "cancelled": "∅",
}
"""What stands for each state in place of a value; done trainings are ✓."""


WORST_FIRST = ("failed", "cancelled", "skipped", "running", "ready", "waiting", "done")


class Row(NamedTuple):
    """A system under the names that reports give it; empty where it has no such name."""

    system: str
    name: str
    objective: str
    teacher: str


class Seed(NamedTuple):
    """One job of a place."""

    job_id: int
    label: str
    state: str
    note: str
    """What the mark stands for, in words: `failed NAN`, `running 40%`."""

    @property
    def mark(self) -> str:
        """The state as a sign."""
        return MARKS.get(self.state, "✓")


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A place of the map: the jobs of one row and column, one per seed."""

    state: str
    """The worst among its jobs'."""
    seeds: tuple[Seed, ...]
    value: float | None = None
    """Mean over the seeds that are done."""
    done: int = 0
    level: int | None = None
    mark: str = ""


@dataclass(frozen=True)
class HeatMap:
    """The whole map; `tiles` has no entry where a row has no job in a column."""

    measure: str | None
    measures: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    tiles: dict[tuple[Row, str], Tile]
    others: dict[str, tuple[Seed, ...]] = field(default_factory=dict)
    """Jobs that belong to no cell, by kind: what all runs share, and stages before the last."""


def heat_map(places: Sequence[OverviewRow], measure: str | None = None) -> HeatMap:
    """The map of a sweep's jobs by one measure; without one, by nDCG where there is one."""
    found = {name for place in places for name in place.means}
    measures = tuple(sorted(found, key=lambda name: (not name.startswith("nDCG"), name)))
    chosen = measure if measure in measures else next(iter(measures), None)
    groups: dict[tuple[Row, str], list[OverviewRow]] = defaultdict(list)
    others: dict[str, list[OverviewRow]] = defaultdict(list)
    tested = {_row(place)[1:] for place in places if place.kind == "evaluate"}
    for place in places:
        row, column = _row(place), _column(place)
        if column and (place.kind == "evaluate" or row[1:] in tested):
            groups[row, column].append(place)
        else:
            others[place.kind].append(place)
    columns = tuple(dict.fromkeys(column for _, column in groups))
    if TRAINING in columns:
        columns = (TRAINING, *(name for name in columns if name != TRAINING))
    values = {
        key: [place.means[chosen] for place in group if chosen in place.means]
        for key, group in groups.items()
    }
    ranges = {column: _range(values, column) for column in columns}
    return HeatMap(
        measure=chosen,
        measures=measures,
        columns=columns,
        rows=tuple(dict.fromkeys(row for row, _ in groups)),
        tiles={key: _tile(group, values[key], ranges[key[1]]) for key, group in groups.items()},
        others={kind: tuple(map(_seed, group)) for kind, group in others.items()},
    )


def _row(place: OverviewRow) -> Row:
    labels = place.labels
    system = str(labels.get("system") or "run")
    if system == "first_stage":
        return Row(system, str(labels.get("first_stage") or "first stage"), "", "")
    if system == "teacher":
        return Row(system, str(labels.get("teacher") or "teacher"), "", "")
    return Row(
        system, *(str(labels.get(key) or "") for key in ("backbone", "objective", "teacher"))
    )


def _column(place: OverviewRow) -> str | None:
    if place.kind == "evaluate":
        return str(place.labels.get("collection") or "")
    is_cell = place.kind == "train" and "backbone" in place.labels and "trial" not in place.labels
    return TRAINING if is_cell else None


def _range(values: dict[tuple[Row, str], list[float]], column: str) -> tuple[float, float]:
    found = [fmean(group) for (_, name), group in values.items() if name == column and group]
    return (min(found), max(found)) if found else (0.0, 0.0)


def _tile(group: Iterable[OverviewRow], values: list[float], between: tuple[float, float]) -> Tile:
    seeds = tuple(map(_seed, group))
    state = min((seed.state for seed in seeds), key=WORST_FIRST.index)
    low, high = between
    value = fmean(values) if values else None
    share = (value - low) / (high - low) if value is not None and high > low else 1.0
    return Tile(
        state=state,
        seeds=seeds,
        value=value,
        done=sum(seed.state == "done" for seed in seeds),
        level=None if value is None else round(share * (LEVELS - 1)),
        mark=MARKS.get(state, "✓"),
    )


def _seed(place: OverviewRow) -> Seed:
    progress = place.progress or {}
    note = f"{place.state} {place.failure or ''}".strip()
    if place.state == "running" and progress.get("total"):
        note += f" {100 * progress['done'] // progress['total']:.0f}%"
    seed = place.labels.get("seed")
    return Seed(place.job_id, str(seed) if seed is not None else place.name, place.state, note)


log = logging.getLogger(__name__)


TAIL_BYTES = 32_000


SHOWN = ("metrics.jsonl", "trials.json")
"""What a job's page reads of an attempt's folder."""


WHOLE_LOG_BYTES = 5_000_000


LISTED = 1_000


EVENTS = 200


REFRESH_S = 15


@dataclass(frozen=True)
class Site:
    """Answers requests; `engine` should be read-only, and `store` need not be there."""

    engine: Engine
    store: Store
    database: str
    """What the pages call the database."""

    def respond(self, request: Request) -> Answer:
        """The answer to a request; an error becomes a page that says what was wrong."""
        try:
            match request.parts:
                case ():
                    return self._index()
                case ("style.css",):
                    return Answer(templates().get_template("style.css.j2").render(), "text/css")
                case ("metrics",):
                    return Answer(as_text(self.engine), PROMETHEUS)
                case ("sweep", name):
                    return self._sweep(name, request.options.get("measure"))
                case ("sweep", name, "jobs"):
                    return self._jobs(name, request.options)
                case ("job", number):
                    return self._job(number, request.options.get("attempt"))
                case ("job", number, "log"):
                    return self._log(number, request.options.get("attempt"))
            return _message("There is no such page.", HTTPStatus.NOT_FOUND)
        except ConfigError as error:
            return _message(str(error), HTTPStatus.NOT_FOUND)
        except XsweepError as error:
            return _message(str(error), HTTPStatus.SERVICE_UNAVAILABLE)
        except Exception:
            # the terminal is the user's own; a browser is told nothing of the inside
            log.exception("a page failed")
            told = "This page failed; the terminal of xsweep serve says why."
            return _message(told, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _index(self) -> Answer:
        found = status.summary(self.engine)
        open_sweeps = any(count(sweep, OPEN) for sweep in found.sweeps)
        return _page(
            "index",
            refresh=open_sweeps,
            found=found,
            progress={sweep.id: progress_text(sweep, found) for sweep in found.sweeps},
            database=self.database,
            states=[state for state in (*MARKS, "done") if _has(found, state)],
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
            map=heat_map(overview(self.engine, sweep.id), measure),
            marks=MARKS,
        )

    def _jobs(self, name: str, options: dict[str, str]) -> Answer:
        state, kind = options.get("state") or None, options.get("kind") or None
        [sweep] = status.summary(self.engine, name).sweeps
        rows = status.list_jobs(self.engine, sweep.id, limit=LISTED, state=state, kind=kind)
        return _page("jobs", sweep=sweep, rows=rows, limit=LISTED, state=state, kind=kind)

    def _job(self, number: str, attempt: str | None) -> Answer:
        found = jobs.explain(self.engine, _number(number), compare=False)
        shown = _attempt(found, attempt)
        folder = self._results(shown.folder) if shown and shown.folder else None
        return _page(
            "job",
            refresh=found.state == "running",
            job=found,
            shown=shown,
            events=events.history(self.engine, job_id=found.job_id, latest=EVENTS),
            trials=_trials(found, folder) if folder else [],
            curves=[draw(curve) for curve in read_curves(folder)] if folder else [],
            tail=self._tail(shown, TAIL_BYTES),
            spec=json.dumps(found.spec, indent=1),
        )

    def _log(self, number: str, attempt: str | None) -> Answer:
        found = jobs.explain(self.engine, _number(number), compare=False)
        return Answer(self._tail(_attempt(found, attempt), WHOLE_LOG_BYTES) or "", TEXT)

    def _results(self, name: str) -> Path:
        """A folder that has what a page shows of an attempt's."""
        folder = self.store.resolve(name)
        copies = [self.store.fetch_file(f"{name}/{each}") for each in SHOWN]
        return next((copy.parent for copy in copies if copy.exists()), folder)

    def _tail(self, shown: Any, size_bytes: int) -> str | None:
        """The end of an attempt's log, from the beginning of a line on; None where there is none.

        Links are followed before the place is checked: none leads out of the store.
        """
        if shown is None or not shown.log:
            return None
        path = self.store.fetch_file(shown.log)
        if not path.resolve().is_relative_to(self.store.root.resolve()) or not path.is_file():
            return None
        with path.open("rb") as file:
            start = max(0, path.stat().st_size - size_bytes)
            file.seek(start)
            text = file.read(size_bytes).decode(errors="replace")
        return text.partition("\n")[2] if start else text


@cache
def templates() -> "Environment":
    """The templates, which escape everything that is not marked as HTML of ours."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    folders = ("xsweep.orchestrator.serve", "xsweep.orchestrator.report")
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[[float], str]] = {"duration": duration, "clock": _clock}
    environment.filters.update(filters)
    return environment


def _page(name: str, *, refresh: bool = False, **values: Any) -> Answer:
    seconds = REFRESH_S if refresh else None
    return Answer(templates().get_template(f"{name}.html.j2").render(refresh_s=seconds, **values))


def _message(text: str, code: HTTPStatus) -> Answer:
    return _page("message", text=text, code=code)._replace(status=code)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ConfigError(f"{text!r} is not the number of a job")
    return int(text)


def _trials(found: jobs.Explanation, folder: Path) -> list[dict[str, Any]]:
    """What a search compared, with each trial's job; empty for other jobs."""
    try:
        trials = json.loads((folder / "trials.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    ids = {parent.role: parent.job_id for parent in found.parents}
    best_first = sorted(trials, key=_lost_by)
    return [{**trial, "job_id": ids.get(trial["trial"], found.job_id)} for trial in best_first]


def _lost_by(trial: dict[str, Any]) -> float:
    validation = trial["validation"]
    return math.inf if validation is None else -validation


def _attempt(found: jobs.Explanation, token: str | None) -> Any:
    """The attempt of that number; without one, the last."""
    tries = [each for each in found.attempts if token in (None, "", str(each.token))]
    if token and not tries:
        raise ConfigError(f"{found.name!r} has no attempt {token}")
    return tries[-1] if tries else None


def _has(found: status.Summary, state: str) -> bool:
    return any(count(sweep, (state,)) for sweep in found.sweeps)


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
