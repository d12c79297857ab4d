"""Two systems of a sweep query by query: wins, losses, and where they differ most."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evaluator.significance import corrected, paired_t, stratified_means
from orchestrator.report.comparisons import rows_named
from orchestrator.report.table import Column, Row, build_table
from xsweep import ConfigError, did_you_mean

if TYPE_CHECKING:
    from db.results import Cell

CONFIDENCE = 0.95
EQUAL = 1e-9
"""Smaller differences are rounding: averages over seeds differ in their last bits."""

Texts = Mapping[str, str]


class QueryChange(NamedTuple):
    """One query's values under both systems, averaged over seeds."""

    query_id: str
    text: str
    """Empty where the store has it no more."""
    a: float
    b: float

    @property
    def difference(self) -> float:
        """A's value minus B's."""
        return self.a - self.b


class Differences(NamedTuple):
    """System A against system B by one measure on one collection."""

    measure: str
    collection: str
    a: float
    b: float
    seeds: tuple[int, int]
    """How many accepted runs are averaged of each."""
    interval: tuple[float, float]
    """95%, of the mean difference over queries."""
    effect: float
    p: float
    p_corrected: float
    """By Holm, over all collections and measures of this comparison."""
    queries: tuple[QueryChange, ...]
    """All of them, A's largest gain first, its largest loss last; ties by query id."""

    @property
    def difference(self) -> float:
        """A's mean minus B's."""
        return self.a - self.b

    @property
    def wins(self) -> int:
        """Queries on which A is better."""
        return sum(each.difference > EQUAL for each in self.queries)

    @property
    def losses(self) -> int:
        """Queries on which B is better."""
        return sum(each.difference < -EQUAL for each in self.queries)


def compare_systems(
    cells: Sequence["Cell"],
    a: str,
    b: str,
    *,
    measures: Sequence[str] = ("nDCG@10",),
    collections: Sequence[str] = (),
    texts: Callable[["Cell"], Texts] = lambda cell: {},
) -> tuple[Row, Row, list[Differences]]:
    """The two rows that `a` and `b` name, and their differences wherever both have results.

    `collections` limits where; `texts` gives the query texts of an evaluation's collection.

    Raises ConfigError for a name that is no system or several, an unknown collection or measure,
    and where the two share no collection.
    """
    known = list(dict.fromkeys(cell.labels["collection"] for cell in cells))
    for name in collections:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(
                f"no evaluation is on collection {name!r}"
                + (f"; {hint}" if hint else ".")
                + f" There are: {', '.join(known)}"
            )
    kept = [cell for cell in cells if not collections or cell.labels["collection"] in collections]
    table = build_table(kept, measures)
    rows = [_the_one_row(table.rows, name) for name in (a, b)]
    if rows[0] == rows[1]:
        raise ConfigError(f"{a!r} and {b!r} are the same system, {rows[0].name!r}")
    shared = [
        column
        for column in table.columns
        if all((row, column) in table.entries and table.entries[row, column].means for row in rows)
    ]
    if not shared:
        raise ConfigError(
            f"{rows[0].name!r} and {rows[1].name!r} have no collection on which both have accepted "
            "results: `xsweep status` shows what is missing"
        )
    found = []
    for column in shared:
        cell = next(
            cell for cell in kept if cell.means and cell.labels["collection"] == column.place
        )
        ours, theirs = (table.entries[row, column] for row in rows)
        each = _differences(column, ours.per_query[0], theirs.per_query[0], cell, texts(cell))
        counts = len(ours.means), len(theirs.means)
        found.append(each._replace(a=ours.mean, b=theirs.mean, seeds=counts))
    together = corrected(np.array([each.p for each in found]), "holm").tolist()
    compared = [each._replace(p_corrected=p) for each, p in zip(found, together, strict=True)]
    return rows[0], rows[1], compared


def _the_one_row(rows: Sequence[Row], name: str) -> Row:
    found = rows_named(rows, name, "system")
    if len(found) > 1:
        listed = ", ".join(repr(row.name) for row in found)
        raise ConfigError(f"{name!r} names {len(found)} systems: {listed}. Say which")
    return found[0]


def _differences(
    column: Column, ours: np.ndarray, theirs: np.ndarray, cell: "Cell", texts: Texts
) -> Differences:
    from scipy.special import stdtrit

    differences = (ours - theirs)[None]
    if ours.size > 1:
        mean, error, freedom = (each[0] for each in stratified_means([differences]))
        reach = float(error * stdtrit(freedom, (1 + CONFIDENCE) / 2)) if error else 0.0
        tested = paired_t([differences])
        effect, p = float(tested.effect[0]), float(tested.p[0])
    else:
        mean, reach, effect, p = float(differences[0, 0]), float("nan"), float("nan"), 1.0
    queries = [
        QueryChange(id_, texts.get(id_, ""), float(x), float(y))
        for id_, x, y in zip(sorted(cell.query_ids), ours, theirs, strict=True)
    ]
    queries.sort(key=lambda each: (-round(each.difference, 12), each.query_id))
    return Differences(
        measure=column.measure,
        collection=column.place,
        a=float("nan"),
        b=float("nan"),
        seeds=(0, 0),
        interval=(float(mean) - reach, float(mean) + reach),
        effect=effect,
        p=p,
        p_corrected=p,
        queries=tuple(queries),
    )
