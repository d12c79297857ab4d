"""The numbers of a report: which systems, which columns, what each cell's accepted results say.

Nothing here depends on the order in which cells, queries or seeds arrive. Rows and columns come in
the order of the grid file: by the label `order`, then by job id.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from math import fsum, sqrt
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from xsweep.errors import ConfigError, DataError
from xsweep.evaluator.data.suites import SUITES, averaged_as

if TYPE_CHECKING:
    from xsweep.db.results import Cell


def complete_suites(collections: set[str]) -> dict[str, tuple[str, ...]]:
    """The named suites of which the sweep has every collection, with the names it uses.

    A part of a suite is no suite: its mean would be compared with the whole one's elsewhere.
    """
    suites = dict(SUITES)
    suites["ood"] = {name: id for part in OUT_OF_DOMAIN for name, id in SUITES[part].items()}
    used = {
        suite: tuple(({name, id} & collections) for name, id in members.items())
        for suite, members in suites.items()
    }
    return {
        suite: tuple(sorted(set().union(*names))) for suite, names in used.items() if all(names)
    }


OUT_OF_DOMAIN = ("lotte-search", "robust04")
"""The suites whose collections together are the study's OOD mean."""


SYSTEMS = {"first_stage": "first stage", "teacher": "teacher", "run": ""}
"""The kinds of systems in the order of their rows, and what a row's name says of each."""


ACCEPTED = "done"


STATES = (
    ACCEPTED,
    "not measured",
    "not planned",
    "ready",
    "waiting",
    "running",
    "cancelled",
    "skipped",
    "failed",
)
"""States of an evaluation; a seed that lacks several collections counts under the last of them."""


Name = TypeVar("Name", bound=Hashable)


Ordering = Callable[[tuple[str, ...]], tuple[np.ndarray | slice, tuple[str, ...]]]


class Row(NamedTuple):
    """One system: a first stage, a teacher, or the runs that differ in nothing but their seed."""

    system: str
    model: str
    """Backbone of a run; name of the teacher or of the first stage."""
    objective: str = ""
    teacher: str = ""

    @property
    def name(self) -> str:
        """What a reader calls it: `BM25 (first stage)`, `MiniLM-L6 infonce (bm25_lists)`."""
        kind = SYSTEMS[self.system] or self.teacher
        return f"{self.model} {self.objective}".strip() + (f" ({kind})" if kind else "")


class Column(NamedTuple):
    """One measure on one collection, or on a suite: the unweighted mean of its collections."""

    measure: str
    place: str
    collections: tuple[str, ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """Each collection's share in the mean: equal, but parts of one data set share its part.

        BEIR's mean has 14 members, and each of CQADupStack's twelve parts 1/168 of it.
        """
        sizes = Counter(map(averaged_as, self.collections))
        return tuple(1 / len(sizes) / sizes[averaged_as(name)] for name in self.collections)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known about one row in one column.

    `means` holds each accepted seed's mean, in the seeds' order (None: a system without seeds).
    `per_query` holds, per collection, the accepted seeds' average for every query, sorted by
    query id: float64[queries]. `unfinished` counts planned seeds by the state that keeps them,
    the gravest first.
    """

    means: dict[int | None, float]
    per_query: tuple[np.ndarray, ...]
    unfinished: tuple[tuple[str, int], ...]

    @property
    def planned(self) -> int:
        """How many seeds the sweep has here, accepted or not."""
        return len(self.means) + sum(count for _, count in self.unfinished)

    @property
    def mean(self) -> float:
        """Mean of the seeds' means; NaN while no seed is accepted."""
        return fmean(self.means.values()) if self.means else float("nan")

    @property
    def std(self) -> float:
        """Sample standard deviation (n - 1) of the seeds' means: 0.50, 0.54 give 0.0283.

        NaN with fewer than two seeds. In the unit of the mean: a table in percent multiplies
        it by 100, not its variance.
        """
        if len(self.means) < 2:
            return float("nan")
        middle = self.mean
        squares = fsum((each - middle) ** 2 for each in self.means.values())
        return sqrt(squares / (len(self.means) - 1))


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows by columns; `entries` has a key for every pair that the sweep planned."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    entries: dict[tuple[Row, Column], Entry]

    @property
    def blocks(self) -> list[list[Row]]:
        """Rows that belong together: the reference rows, then each backbone's."""

        def block(row: Row) -> str:
            return row.model if row.system == "run" else ""

        return [list(rows) for _, rows in groupby(self.rows, key=block)]


def build_table(
    cells: Sequence["Cell"],
    measures: Sequence[str],
    suites: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """The table of a sweep's evaluations, one column per measure and collection.

    With `suites` (name -> collections) there is one column per measure and suite instead; a
    collection of no suite keeps its own. A seed counts in a suite's column when all of the
    suite's collections are accepted for it.

    Raises ConfigError for a measure that is not stored, or two results for one place.
    """
    check_measures(cells, measures)
    order_of = cache(_order)  # thousands of cells share few tuples of query ids
    _check_queries(cells, order_of)
    found: dict[Row, dict[str, dict[int | None, Cell]]] = defaultdict(lambda: defaultdict(dict))
    for cell in cells:
        seeds = found[row_of(cell)][cell.labels["collection"]]
        seed = cell.labels.get("seed")
        seeds[seed] = _current(cell, seeds[seed]) if seed in seeds else cell
    collections = _in_order(cells, lambda cell: cell.labels["collection"])
    columns = [
        Column(measure, place, members)
        for measure in measures
        for place, members in _places(collections, suites or {}).items()
    ]
    entries = {
        (row, column): _entry(by_collection, column, order_of)
        for row, by_collection in found.items()
        for column in columns
        if any(collection in by_collection for collection in column.collections)
    }
    return Table(rows=_rows(cells), columns=tuple(columns), entries=entries)


def check_measures(cells: Sequence["Cell"], measures: Sequence[str]) -> None:
    """Raises ConfigError when no result is accepted yet or a measure is stored in none."""
    stored = {measure for cell in cells for measure in cell.means}
    if not stored:
        raise ConfigError(
            "there is nothing to report: none of the sweep's evaluations is accepted yet "
            f"({count_states(cells) or 'it has no evaluations'}); `xsweep status` shows what runs"
        )
    for measure in measures:
        if measure not in stored:
            raise ConfigError(
                f"measure {measure} is not stored in this sweep, which has "
                f"{', '.join(sorted(stored, key=natural))}: choose one of these, or add it to "
                "evaluation.measures in the grid file and submit that again"
            )


def count_states(cells: Iterable["Cell"]) -> str:
    """`3 failed (NAN), 2 running`: the states of cells, alphabetically, failures by class."""
    counts: dict[str, int] = defaultdict(int)
    for cell in cells:
        failure = f" ({cell.failure})" if cell.state == "failed" and cell.failure else ""
        counts[cell.state + failure] += 1
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def row_of(cell: "Cell") -> Row:
    """The row that an evaluation belongs to, by its labels."""
    labels = cell.labels
    system = labels["system"]
    if system == "run":
        return Row(system, labels["backbone"], labels["objective"], labels["teacher"])
    return Row(system, labels.get(system) or SYSTEMS[system])


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key under which numbers inside names count as numbers: L3 before L12."""
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if part.isdigit() else (-1, part.casefold()) for part in parts] + [
        (-1, text)
    ]


def _in_order(cells: Iterable["Cell"], name: Callable[["Cell"], Name]) -> dict[Name, int]:
    """What `name` gives for the cells, with the place of each in the grid's order."""
    ordered = sorted(cells, key=lambda cell: (cell.labels.get("order", 0), cell.job_id))
    return {each: place for place, each in enumerate(dict.fromkeys(map(name, ordered)))}


def _rows(cells: Sequence["Cell"]) -> tuple[Row, ...]:
    """The systems: first stages, teachers, then runs, each backbone's together."""
    kinds, places = list(SYSTEMS), _in_order(cells, row_of)
    models = _in_order(cells, lambda cell: row_of(cell).model)
    return tuple(
        sorted(places, key=lambda row: (kinds.index(row.system), models[row.model], places[row]))
    )


def _places(
    collections: Iterable[str], suites: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Columns' names with the collections of the sweep behind each."""
    present = list(collections)
    places = {
        suite: tuple(name for name in present if name in members)
        for suite, members in suites.items()
    }
    grouped = {name for members in places.values() for name in members}
    alone = {name: (name,) for name in present if name not in grouped}
    return {place: members for place, members in places.items() if members} | alone


def _current(one: "Cell", other: "Cell") -> "Cell":
    """Of two jobs with the same labels, the one that was not cancelled."""
    live = [cell for cell in (one, other) if cell.state != "cancelled"]
    if len(live) == 2:
        raise ConfigError(
            f"two different jobs stand for {one.name!r}: {one.identity[:12]} and "
            f"{other.identity[:12]}: the grid changed under one sweep name. Submit the grid under "
            "a new name and report that: what is done is shared, nothing is computed twice"
        )
    return min(live or (one, other), key=lambda cell: cell.identity)


def _order(ids: tuple[str, ...]) -> tuple[np.ndarray | slice, tuple[str, ...]]:
    """What sorts arrays over these query ids, and the sorted ids; sorted ones are left in place."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    ordered = tuple(ids[place] for place in order)
    return (slice(None) if ordered == ids else np.array(order, dtype=np.intp)), ordered


def _check_queries(cells: Iterable["Cell"], order_of: Ordering) -> None:
    """Raises DataError when two results on one collection have not the same queries."""
    first: dict[str, Cell] = {}
    for cell in cells:
        if cell.means:
            other = first.setdefault(cell.labels["collection"], cell)
            if order_of(cell.query_ids)[1] != order_of(other.query_ids)[1]:
                raise DataError(
                    f"{cell.name!r} has {len(cell.query_ids)} queries and {other.name!r} "
                    f"{len(other.query_ids)}, and they are not the same: such scores cannot be "
                    "paired. The collection changed between the two; evaluate both on one of them"
                )


def _entry(
    by_collection: Mapping[str, Mapping[int | None, "Cell"]], column: Column, order_of: Ordering
) -> Entry:
    cells = [by_collection.get(collection, {}) for collection in column.collections]
    weights = column.weights
    means: dict[int | None, float] = {}
    arrays: list[list[np.ndarray]] = []
    unfinished: dict[str, int] = defaultdict(int)
    for seed in sorted({seed for each in cells for seed in each}, key=lambda seed: seed or 0):
        states = [_state(each.get(seed), column.measure) for each in cells]
        if all(state == ACCEPTED for state in states):
            done = [each[seed] for each in cells]
            means[seed] = fmean((cell.means[column.measure] for cell in done), weights)
            arrays.append(
                [cell.scores[column.measure][order_of(cell.query_ids)[0]] for cell in done]
            )
        else:
            unfinished[max(states, key=STATES.index)] += 1
    return Entry(
        means=means,
        per_query=tuple(_average(each) for each in zip(*arrays, strict=True)),
        unfinished=tuple(sorted(unfinished.items(), key=lambda each: -STATES.index(each[0]))),
    )


def _average(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Their mean; a third of the time of stacking them first."""
    return sum(arrays[1:], arrays[0]) / len(arrays)


def _state(cell: "Cell | None", measure: str) -> str:
    if cell is None:
        return "not planned"
    if measure in cell.means:
        return ACCEPTED
    return "not measured" if cell.state == ACCEPTED else cell.state
