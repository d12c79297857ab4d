"""Data behind the figures of pages: heat maps, curves over steps, two systems query by query.

In a heat map, colours rank a column's values and marks show states, so that neither depends on the
other. The other figures are Plotly's, as JSON without colours, which pages take from their style.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from xsweep.db.schema import State
from xsweep.db.status import JobGroup
from xsweep.errors import ConfigError
from xsweep.orchestrator.report.compare import Differences
from xsweep.orchestrator.report.table import Row, natural_key, row_of
from xsweep.orchestrator.serve import Request

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
Systems = Mapping[Row, Sequence[JobGroup]]
"""Accepted evaluations on one collection, by system."""
MAX_SEEDS = 8
"""Jobs that a tile links; more are counted."""
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
MARKED_POINTS = 30
"""Curves of at most so many points show each."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
GREY = 7
"""Colour of a line that only guides the eye."""


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


class Curve(NamedTuple):
    """One figure over training steps; values are finite."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    colour: int = 0
    """Place in the page's palette."""
    dash: int = 0
    """Place in `DASHES`."""

    @property
    def least(self) -> tuple[float, float]:
        """The smallest value and its first step."""
        return min(zip(self.values, self.steps, strict=True))

    @property
    def most(self) -> tuple[float, float]:
        """The largest value and its first step."""
        value = max(self.values)
        return value, self.steps[self.values.index(value)]


def read_curves(folder: Path) -> dict[str, Curve]:
    """The curves in an attempt's folder by key; none where it has no `metrics.jsonl` yet."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    # The last line may be half written.
    records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    curves = {}
    for key, name in FIGURES.items():
        given = [each for each in records if isinstance(each.get(key), int | float)]
        points = [(each["step"], each[key]) for each in given if math.isfinite(each[key])]
        if points:
            steps, values = zip(*_averaged(points), strict=True)
            curves[key] = Curve(name, steps, values)
    return curves


def _averaged(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` points: means of neighbours, each at the last step of its own."""
    size = math.ceil(len(points) / POINTS)
    pieces = [points[start : start + size] for start in range(0, len(points), size)]
    return [(piece[-1][0], fmean(value for _, value in piece)) for piece in pieces]


def of_runs(found: Iterable[tuple[str, Mapping[str, Any], Curve]]) -> list[Curve]:
    """Curves of several trainings, given with their names and labels.

    The trainings that differ only in their seed share a colour, those of one seed a dash.
    """
    colours: dict[Row, int] = {}
    dashes: dict[Any, int] = {}
    return [
        curve._replace(
            name=name,
            colour=colours.setdefault(row_of(labels), len(colours)),
            dash=dashes.setdefault(labels.get("seed"), len(dashes)),
        )
        for name, labels, curve in found
    ]


def line_figure(title: str, curves: Sequence[Curve]) -> dict[str, Any]:
    """Curves over steps."""
    data = [
        {
            "name": escape(curve.name),
            "x": curve.steps,
            "y": [float(f"{value:.6g}") for value in curve.values],
            "mode": "lines+markers" if len(curve.steps) <= MARKED_POINTS else "lines",
            "line": {"dash": DASHES[curve.dash % len(DASHES)]},
            "meta": curve.colour,
        }
        for curve in curves
    ]
    axes = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": escape(title)}}}
    return {"data": data, "layout": {**axes, "hovermode": "x"}}


def one_of(names: Sequence[str], wanted: str) -> str:
    """The wanted name if it is one of these, else the first."""
    return wanted if wanted in names else names[0]


class Side(NamedTuple):
    """One of two compared systems: the mean of its seeds, or one of them."""

    system: str
    seed: str

    @property
    def name(self) -> str:
        """`MiniLM-L6 infonce (bm25_lists) s12`."""
        return f"{self.system} s{self.seed}" if self.seed else self.system


def choose_sides(systems: Systems, measure: str, request: Request) -> tuple[Side, Side]:
    """The two that were chosen; by default the best one and a first stage, else the second."""

    def mean(row: Row) -> float:
        total = sum(group.means.get(measure, 0.0) for group in systems[row])
        return total / sum(len(group.jobs) for group in systems[row])

    best = sorted(systems, key=mean, reverse=True)
    stages = [row for row in best[1:] if row.system == "first_stage"]
    names = [row.name for row in best]
    other = [row.name for row in (*stages, *best[1:], *best)]
    return (
        Side(one_of(names, request.get("a")), request.get("a_seed")),
        Side(one_of(other, request.get("b")), request.get("b_seed")),
    )


def jobs_of(systems: Systems, side: Side) -> list[int]:
    """Jobs of a side. Raises ConfigError if there are none."""
    found = [
        job_id
        for row, groups in systems.items()
        if row.name == side.system
        for group in groups
        for job_id, label in group.jobs
        if side.seed in ("", label)
    ]
    if not found:
        raise ConfigError(f"{side.system!r} has no result of seed {side.seed!r} here")
    return found


def seeds_of(systems: Systems) -> list[str]:
    """The seeds of all runs, in the order of numbers."""
    return sorted(
        {
            label
            for row, groups in systems.items()
            if row.system == "run"
            for group in groups
            for _, label in group.jobs
        },
        key=natural_key,
    )


def query_figure(a: str, b: str, found: Differences) -> dict[str, Any]:
    """A point per query, its value under system `a` over that under `b`."""
    x, y = [query.b for query in found.queries], [query.a for query in found.queries]
    points = {
        "x": x,
        "y": y,
        "text": [escape(f"{query.query_id}: {query.text[:100]}") for query in found.queries],
        "customdata": [query.query_id for query in found.queries],
        "mode": "markers",
        "meta": 0,
        "hovertemplate": "%{text}<br>%{y:.3f} against %{x:.3f}<extra></extra>",
    }
    ends = [min(0.0, *x, *y), max(*x, *y)]
    equal = {"x": ends, "y": ends, "mode": "lines", "meta": GREY, "hoverinfo": "skip"}
    layout = {
        "xaxis": {"title": {"text": escape(f"{found.measure}, {b}")}},
        "yaxis": {"title": {"text": escape(f"{found.measure}, {a}")}},
        "hovermode": "closest",
    }
    return {"data": [{**equal, "line": {"dash": "dot"}}, points], "layout": layout}
