"""What effects are computed from: the systems with results on every collection, one measure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from evaluator.significance import satterthwaite
from orchestrator.report.comparisons import testable
from orchestrator.report.report import Report
from orchestrator.report.table import Column, Row, Table, build_table

CONFIDENCE = 0.95

Factors = dict[str, list[str]]
"""What varies among systems: name of the choice -> the level of every row."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measure of the runs that have results on all collections of the sweep."""

    measure: str
    table: Table
    """One column per collection, whatever the report's columns are."""
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    left_out: int
    """Systems without results on some collection."""

    @cached_property
    def scores(self) -> list[np.ndarray]:
        """Per collection float64[rows, queries], averaged over seeds."""
        entries = self.table.entries
        return [
            np.stack([entries[row, column].per_query[0] for row in self.rows])
            for column in self.columns
        ]

    @cached_property
    def covariances(self) -> list[np.ndarray]:
        """Per collection float64[rows, rows], over queries: what any weighted sum varies by."""
        return [np.atleast_2d(np.cov(each)) for each in self.scores]

    @cached_property
    def means(self) -> np.ndarray:
        """float64[rows, collections], averaged over seeds and queries."""
        entries = self.table.entries
        return np.array(
            [[entries[row, column].mean for column in self.columns] for row in self.rows]
        )

    @cached_property
    def by_seed(self) -> list[np.ndarray]:
        """Per row float64[seeds, collections], of the seeds that have all collections."""
        found = []
        for row in self.rows:
            means = [self.table.entries[row, column].means for column in self.columns]
            seeds = [seed for seed in means[0] if all(seed in each for each in means)]
            found.append(
                np.array([[each[seed] for each in means] for seed in seeds]).reshape(
                    len(seeds), len(means)
                )
            )
        return found

    @cached_property
    def seed_variance(self) -> tuple[float, int]:
        """Variance over seeds of a system's mean over collections, pooled, and its freedom."""
        runs = [each.mean(axis=1) for each in self.by_seed if len(each)]
        freedom = sum(len(each) - 1 for each in runs)
        squares = sum(float(((each - each.mean()) ** 2).sum()) for each in runs)
        return (squares / freedom if freedom else float("nan")), freedom


def measured(report: Report) -> list[Measured]:
    """The systems to compare, for every measure of which at least two have all collections."""
    measures = list(dict.fromkeys(column.measure for column in report.table.columns))
    table = report.table
    if report.by != "collection":
        table = build_table(report.cells, measures)
    found = []
    for measure in measures:
        columns = tuple(column for column in table.columns if column.measure == measure)
        runs = [row for row in table.rows if row.system == "run"]
        rows = tuple(
            row
            for row in runs
            if all(
                (row, column) in table.entries and testable(table.entries[row, column])
                for column in columns
            )
        )
        if len(rows) > 1:
            left_out = len(runs) - len(rows)
            found.append(
                Measured(
                    measure=measure, table=table, rows=rows, columns=columns, left_out=left_out
                )
            )
    return found


def intervals(data: Measured, weights_LR: np.ndarray) -> list[dict[str, Any]]:
    """What weighted sums of the systems are, with 95% intervals: float64[sums, rows] weights.

    Each dict has `value` and, as (low, high): `queries`, other queries of the same collections;
    `seeds`, other seeds of the same trainings (pooled variance within systems); `collections`,
    other collections, by a t interval over them. What there is one of has None.
    """
    from scipy.special import stdtrit

    upper = (1 + CONFIDENCE) / 2
    queries = [each.shape[1] for each in data.scores]
    error, freedom = satterthwaite(
        [
            np.einsum("lr,rs,ls->l", weights_LR, covariance, weights_LR, optimize=True) / count
            for covariance, count in zip(data.covariances, queries, strict=True)
        ],
        [count - 1 for count in queries],
        [1 / len(queries)] * len(queries),
    )
    variance, seeds_freedom = data.seed_variance
    counts = np.array([max(len(each), 1) for each in data.by_seed])
    per_collection = weights_LR @ data.means
    value = per_collection.mean(axis=1)
    collections = per_collection.shape[1]
    found = []
    for place, weights in enumerate(weights_LR):
        reach: dict[str, float | None] = {
            "queries": error[place] * stdtrit(freedom[place], upper) if error[place] else 0.0,
            "seeds": None,
            "collections": None,
        }
        if seeds_freedom:
            error_s = np.sqrt(variance * (weights**2 / counts).sum())
            reach["seeds"] = float(error_s * stdtrit(seeds_freedom, upper))
        if collections > 1:
            error_c = per_collection[place].std(ddof=1) / np.sqrt(collections)
            reach["collections"] = float(error_c * stdtrit(collections - 1, upper))
        middle = float(value[place])
        found.append(
            {"value": middle}
            | {
                name: None if each is None else (middle - float(each), middle + float(each))
                for name, each in reach.items()
            }
        )
    return found


def interval_heads(data: Measured) -> list[str]:
    """Which of the intervals of `intervals` the data have."""
    heads = ["queries"]
    heads += ["seeds"] if data.seed_variance[1] else []
    return heads + (["collections"] if len(data.columns) > 1 else [])


def signed(report: Report, value: float) -> str:
    """`+0.012` or `−0.012`, as the table prints numbers."""
    return f"{'−' if value < 0 else '+'}{report.number(abs(value))}"


def interval_texts(report: Report, found: dict[str, Any], heads: Sequence[str]) -> tuple[str, ...]:
    """`+0.010 to +0.014` for each of the named intervals."""
    return tuple(" to ".join(signed(report, end) for end in found[head]) for head in heads)
