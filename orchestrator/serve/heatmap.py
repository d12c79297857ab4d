"""A sweep's grid as a heat map: a row per system, a column per collection, a place per seed.

A colour says how good a value is among those of its column; a mark says the state, so that neither
needs colours to be read.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from db.overview import Place

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


def heat_map(places: Sequence[Place], measure: str | None = None) -> HeatMap:
    """The map of a sweep's jobs by one measure; without one, by nDCG where there is one."""
    found = {name for place in places for name in place.means}
    measures = tuple(sorted(found, key=lambda name: (not name.startswith("nDCG"), name)))
    chosen = measure if measure in measures else next(iter(measures), None)
    groups: dict[tuple[Row, str], list[Place]] = defaultdict(list)
    others: dict[str, list[Place]] = defaultdict(list)
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


def _row(place: Place) -> Row:
    labels = place.labels
    system = str(labels.get("system") or "run")
    if system == "first_stage":
        return Row(system, str(labels.get("first_stage") or "first stage"), "", "")
    if system == "teacher":
        return Row(system, str(labels.get("teacher") or "teacher"), "", "")
    return Row(
        system, *(str(labels.get(key) or "") for key in ("backbone", "objective", "teacher"))
    )


def _column(place: Place) -> str | None:
    if place.kind == "evaluate":
        return str(place.labels.get("collection") or "")
    is_cell = place.kind == "train" and "backbone" in place.labels and "trial" not in place.labels
    return TRAINING if is_cell else None


def _range(values: dict[tuple[Row, str], list[float]], column: str) -> tuple[float, float]:
    found = [fmean(group) for (_, name), group in values.items() if name == column and group]
    return (min(found), max(found)) if found else (0.0, 0.0)


def _tile(group: Iterable[Place], values: list[float], between: tuple[float, float]) -> Tile:
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


def _seed(place: Place) -> Seed:
    progress = place.progress or {}
    note = f"{place.state} {place.failure or ''}".strip()
    if place.state == "running" and progress.get("total"):
        note += f" {100 * progress['done'] // progress['total']:.0f}%"
    seed = place.labels.get("seed")
    return Seed(place.job_id, str(seed) if seed is not None else place.name, place.state, note)
