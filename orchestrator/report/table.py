"""Rows, columns and entries of a report, built from a sweep's evaluations.

The order in which cells, queries or seeds arrive changes nothing. Rows and columns follow the grid
file: the label `order`, then the job id.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from statistics import fmean, stdev
from typing import Any, NamedTuple, TypeVar

import numpy as np

from xsweep.db.results import Cell
from xsweep.errors import ConfigError, DataError
from xsweep.evaluator.data.suites import SUITES, averaged_as

OUT_OF_DOMAIN = ("lotte-search", "robust04")
"""Suites whose collections together are the suite `ood`."""
SYSTEMS = {"first_stage": "first stage", "teacher": "teacher", "run": ""}
"""Kinds of systems in the order of their rows, with the suffix of their names."""
ACCEPTED = "done"
STATES = (
    *(ACCEPTED, "not measured", "not planned"),
    *("ready", "waiting", "running", "cancelled", "skipped", "failed"),
)
"""States of an evaluation; a seed that lacks several collections counts under the last of them."""
Key = TypeVar("Key", bound=Hashable)
Sorting = Callable[[tuple[str, ...]], tuple[np.ndarray | slice, tuple[str, ...]]]


class Row(NamedTuple):
    """One system: a first stage, a teacher, or the runs that differ only in their seed."""

    system: str
    model: str
    """Backbone of a run; name of the teacher or first stage."""
    objective: str = ""
    teacher: str = ""

    @property
    def name(self) -> str:
        """`BM25 (first stage)` or `MiniLM-L6 infonce (bm25_lists)`."""
        kind = SYSTEMS[self.system] or self.teacher
        return f"{self.model} {self.objective}".strip() + (f" ({kind})" if kind else "")


class Column(NamedTuple):
    """One measure on one collection, or on a suite: the unweighted mean of its collections."""

    measure: str
    place: str
    """Name of the collection or suite."""
    collections: tuple[str, ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of each collection in the mean: equal, but parts of one data set share its weight.

        BEIR's mean has 14 members, and each of CQADupStack's twelve parts 1/168 of it.
        """
        return _weights(self.collections)


@cache
def _weights(collections: tuple[str, ...]) -> tuple[float, ...]:
    sizes = Counter(map(averaged_as, collections))
    return tuple(1 / len(sizes) / sizes[averaged_as(name)] for name in collections)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Results of one row in one column."""

    means: dict[int | None, float]
    """Mean of each accepted seed, in the order of seeds (None: a system without seeds)."""
    per_query: tuple[np.ndarray, ...]
    """float64[queries] per collection: mean over accepted seeds, sorted by query id."""
    unfinished: tuple[tuple[str, int], ...]
    """Number of planned seeds without a result, by state, the worst first."""

    @property
    def planned(self) -> int:
        """Number of seeds that the sweep has here, accepted or not."""
        return len(self.means) + sum(count for _, count in self.unfinished)

    @property
    def mean(self) -> float:
        """Mean of the seeds' means; NaN while no seed is accepted."""
        return fmean(self.means.values()) if self.means else float("nan")

    @property
    def std(self) -> float:
        """Sample standard deviation (n - 1) of the seeds' means: 0.50, 0.54 give 0.0283.

        NaN with fewer than two seeds.
        """
        return stdev(self.means.values()) if len(self.means) > 1 else float("nan")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows by columns; `entries` has a key for every pair that the sweep planned."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    entries: dict[tuple[Row, Column], Entry]

    @property
    def blocks(self) -> list[list[Row]]:
        """Groups of rows: the reference rows, then each backbone's."""
        groups = groupby(self.rows, key=lambda row: row.model if row.system == "run" else "")
        return [list(rows) for _, rows in groups]

    def result(self, row: Row, column: Column) -> Entry | None:
        """The entry, if it has at least one accepted result."""
        entry = self.entries.get((row, column))
        return entry if entry and entry.means else None


def build_table(
    cells: Sequence[Cell],
    measures: Sequence[str],
    suites: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """Table of a sweep's evaluations with one column per measure and collection.

    With `suites` (name -> collections) there is one column per measure and suite instead; a
    collection of no suite keeps its own. A seed counts in a suite's column when all of the
    suite's collections are accepted for it.

    Raises ConfigError for a measure that is not stored or two results for one entry, DataError for
    results over different queries.
    """
    _check_measures(cells, measures)
    sorting = cache(_sort_ids)  # thousands of cells share few tuples of query ids
    _check_queries(cells, sorting)
    found: dict[Row, dict[str, dict[int | None, Cell]]] = defaultdict(lambda: defaultdict(dict))
    ordered = sorted(cells, key=lambda cell: (cell.labels.get("order", 0), cell.job_id))
    for cell in ordered:
        seeds = found[row_of(cell.labels)][cell.labels["collection"]]
        seed = cell.labels.get("seed")
        seeds[seed] = _current(cell, seeds[seed]) if seed in seeds else cell
    collections = dict.fromkeys(cell.labels["collection"] for cell in ordered)
    columns = [
        Column(measure, place, members)
        for measure in measures
        for place, members in _places(tuple(collections), suites or {}).items()
    ]
    entries = {
        (row, column): _entry(by_collection, column, sorting)
        for row, by_collection in found.items()
        for column in columns
        if any(collection in by_collection for collection in column.collections)
    }
    return Table(rows=_rows(found), columns=tuple(columns), entries=entries)


def complete_suites(collections: set[str]) -> dict[str, tuple[str, ...]]:
    """Named suites of which the sweep has every collection, with the names that it uses.

    An incomplete suite is left out: its mean is not comparable with published ones. Of several
    first stages each has its own: `beir-13 (BM25)` of `scifact (BM25)` and so on.
    """
    suites = dict(SUITES)
    suites["ood"] = {name: id for part in OUT_OF_DOMAIN for name, id in SUITES[part].items()}
    by_stage: dict[str, set[str]] = defaultdict(set)
    for name in sorted(collections):
        bare = without_stage(name)
        by_stage[name.removeprefix(bare)].add(bare)
    return {
        suite + stage: tuple(f"{name}{stage}" for name in sorted(set().union(*names)))
        for stage, present in by_stage.items()
        for suite, members in suites.items()
        if all(names := [{name, id} & present for name, id in members.items()])
    }


def without_stage(place: str) -> str:
    """The name of a collection or suite without that of its first stage: `scifact (BM25)`."""
    return re.sub(r" \(.*\)$", "", place)


def count_states(cells: Iterable[Cell]) -> str:
    """`3 failed (NAN), 2 running`: the states of cells, alphabetically, failures by class."""
    counts: dict[str, int] = defaultdict(int)
    for cell in cells:
        failure = f" ({cell.failure})" if cell.state == "failed" and cell.failure else ""
        counts[cell.state + failure] += 1
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def row_of(labels: Mapping[str, Any]) -> Row:
    """Row that a job belongs to, by its labels; trainings and shared jobs name no system."""
    system = labels.get("system", "run")
    if system == "run":
        return Row(system, *(labels.get(key) or "" for key in ("backbone", "objective", "teacher")))
    return Row(system, labels.get(system) or SYSTEMS[system])


def natural_key(text: str) -> list[tuple[int, str]]:
    """Sort key that compares numbers inside names as numbers: L3 before L12."""
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if part.isdigit() else (-1, part.casefold()) for part in parts] + [
        (-1, text)
    ]


def nothing_accepted(states: str) -> ConfigError:
    """The error of a report on evaluations in these states."""
    return ConfigError(
        "nothing to report: none of the sweep's evaluations is accepted yet "
        f"({states or 'it has no evaluations'}); see `xsweep status`"
    )


def _check_measures(cells: Sequence[Cell], measures: Sequence[str]) -> None:
    stored = {measure for cell in cells for measure in cell.means}
    if not stored:
        raise nothing_accepted(count_states(cells))
    for measure in measures:
        if measure not in stored:
            raise ConfigError(
                f"measure {measure} is not stored in this sweep, which has "
                f"{', '.join(sorted(stored, key=natural_key))}: use one of these, or add it to "
                "evaluation.measures in the grid file and submit the grid again"
            )


def _check_queries(cells: Iterable[Cell], sorting: Sorting) -> None:
    first: dict[str, Cell] = {}
    for cell in cells:
        if cell.means:
            other = first.setdefault(cell.labels["collection"], cell)
            if sorting(cell.query_ids)[1] != sorting(other.query_ids)[1]:
                raise DataError(
                    f"{cell.name!r} ({len(cell.query_ids)} queries) and {other.name!r} "
                    f"({len(other.query_ids)}) have different queries: their scores cannot be "
                    "paired. The collection changed in between; evaluate both on the same version"
                )


def _sort_ids(ids: tuple[str, ...]) -> tuple[np.ndarray | slice, tuple[str, ...]]:
    """Index that sorts arrays over these query ids (a full slice if sorted), and the sorted ids."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    ordered = tuple(ids[index] for index in order)
    return (slice(None) if ordered == ids else np.array(order, dtype=np.intp)), ordered


def _current(one: Cell, other: Cell) -> Cell:
    """The one of two jobs with the same labels that was not cancelled."""
    live = [cell for cell in (one, other) if cell.state != "cancelled"]
    if len(live) == 2:
        raise ConfigError(
            f"two different jobs have the labels of {one.name!r}, {one.identity[:12]} and "
            f"{other.identity[:12]}: an older version accepted a changed grid under one name. "
            "Submit the grid again with --replace: finished jobs are shared, nothing is computed "
            "twice"
        )
    return min(live or (one, other), key=lambda cell: cell.identity)


def _rows(planned: Iterable[Row]) -> tuple[Row, ...]:
    """First stages, teachers, then runs, grouped by backbone; otherwise in the given order."""
    rows, kinds = list(planned), list(SYSTEMS)
    models = list(dict.fromkeys(row.model for row in rows))
    places = {model: place for place, model in enumerate(models)}
    return tuple(sorted(rows, key=lambda row: (kinds.index(row.system), places[row.model])))


def _places(
    present: Sequence[str], suites: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Suites, then the collections of no suite, each with its collections in the sweep."""
    places = {
        suite: members
        for suite, names in suites.items()
        if (members := tuple(name for name in present if name in names))
    }
    grouped = {name for members in places.values() for name in members}
    return places | {name: (name,) for name in present if name not in grouped}


def _entry(
    by_collection: Mapping[str, Mapping[int | None, Cell]], column: Column, sorting: Sorting
) -> Entry:
    cells = [by_collection.get(collection, {}) for collection in column.collections]
    means: dict[int | None, float] = {}
    arrays: list[list[np.ndarray]] = []
    unfinished: dict[str, int] = defaultdict(int)
    for seed in sorted({seed for each in cells for seed in each}, key=lambda seed: seed or 0):
        states = [_state(each.get(seed), column.measure) for each in cells]
        if all(state == ACCEPTED for state in states):
            done = [each[seed] for each in cells]
            means[seed] = fmean((cell.means[column.measure] for cell in done), column.weights)
            arrays.append(
                [cell.scores[column.measure][sorting(cell.query_ids)[0]] for cell in done]
            )
        else:
            unfinished[max(states, key=STATES.index)] += 1
    return Entry(
        means=means,
        # summed one by one: three times as fast as stacking first
        per_query=tuple(sum(each[1:], each[0]) / len(each) for each in zip(*arrays, strict=True)),
        unfinished=tuple(sorted(unfinished.items(), key=lambda each: -STATES.index(each[0]))),
    )


def _state(cell: Cell | None, measure: str) -> str:
    if cell is None:
        return "not planned"
    if measure in cell.means:
        return ACCEPTED
    return "not measured" if cell.state == ACCEPTED else cell.state
