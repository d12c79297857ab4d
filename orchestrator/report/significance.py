"""Significance of a report's differences: paired tests, corrected together as one family."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from xsweep.errors import unknown_name
from xsweep.evaluator.significance import (
    PairedT,
    corrected,
    paired_randomization,
    paired_t,
    stratified_means,
)
from xsweep.orchestrator.report.report import Comparison, ReportOptions
from xsweep.orchestrator.report.table import Column, Row, Table

CONFIDENCE = 0.95
"""Confidence level of all intervals."""


def find_baselines(table: Table, names: Sequence[str]) -> tuple[Row, ...]:
    """Distinct rows of the names, see `rows_named`."""
    return tuple(dict.fromkeys(row for name in names for row in rows_named(table.rows, name)))


def rows_named(rows: Sequence[Row], name: str, noun: str = "baseline") -> list[Row]:
    """Rows with that name, model or kind (`first_stage`, `teacher`).

    Raises ConfigError with the nearest names if there is none.
    """
    found = [row for row in rows if name.casefold() in _names(row)]
    if not found:
        known = [each.name for each in rows]
        raise unknown_name(f"{noun} {name!r} is not in this sweep", name, known)
    return found


def compare_rows(
    table: Table, baselines: Sequence[Row], options: ReportOptions
) -> tuple[Comparison, ...]:
    """Every other row against each baseline, in each column where both have results.

    With `options.pairs` also every pair of a backbone's systems. Scores are averaged over seeds
    first: a query is one observation. The correction covers all comparisons. Tests are two-sided.
    """
    found: list[tuple[Column, tuple[Row, Row, bool]]] = []
    statistics: list[PairedT] = []
    for column in table.columns:
        pairs = _pairs(table, column, baselines, options.pairs)
        if pairs:
            found += [(column, pair) for pair in pairs]
            rows = [(row, baseline) for row, baseline, _ in pairs]
            statistics.append(paired_statistics(table, column, rows, options.test))
    if not found:
        return ()
    difference, effect, p = (np.concatenate(parts) for parts in zip(*statistics, strict=True))
    numbers = (difference, effect, p, corrected(p, options.correction))
    return tuple(
        Comparison(
            row=row,
            column=column,
            baseline=baseline,
            difference=gain,
            effect=d,
            queries=sum(map(len, table.entries[row, column].per_query)),
            p=p_alone,
            p_corrected=p_family,
            verdict="same" if p_family >= options.alpha else "better" if gain > 0 else "worse",
            within_block=within,
        )
        for (column, (row, baseline, within)), gain, d, p_alone, p_family in zip(
            found, *(each.tolist() for each in numbers), strict=True
        )
    )


def paired_statistics(
    table: Table, column: Column, pairs: Sequence[tuple[Row, Row]], test: str = "t"
) -> PairedT:
    """Difference, effect size and p of each pair in a column where both have results."""
    place = {row: i for i, row in enumerate(dict.fromkeys(row for pair in pairs for row in pair))}
    ours = np.array([place[row] for row, _ in pairs])
    theirs = np.array([place[row] for _, row in pairs])
    differences = []
    for each in zip(*(table.entries[row, column].per_query for row in place), strict=True):
        scores_SQ = np.stack(each)
        differences.append(scores_SQ[ours] - scores_SQ[theirs])
    found = paired_t(differences, column.weights)
    if test == "randomization":
        found = found._replace(p=paired_randomization(differences, column.weights))
    return found


def mean_and_width(
    differences: Sequence[np.ndarray], weights: Sequence[float] | None = None
) -> tuple[float, float]:
    """Weighted mean of collections' mean differences; half the width of its 95% interval.

    `differences`: float64[queries] per collection.
    """
    from scipy.special import stdtrit

    mean, error, freedom = map(float, stratified_means(differences, weights))
    return mean, error * float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) if error else 0.0


def testable(table: Table, row: Row, column: Column) -> bool:
    """True for results on two queries or more per collection: one alone has no variance."""
    entry = table.result(row, column)
    return entry is not None and all(len(values) > 1 for values in entry.per_query)


def _names(row: Row) -> set[str]:
    without_teacher = f"{row.model} {row.objective}".strip()
    return {each.casefold() for each in (row.name, without_teacher, row.system) if each != "run"}


def _pairs(
    table: Table, column: Column, baselines: Sequence[Row], within_blocks: bool
) -> list[tuple[Row, Row, bool]]:
    """Row, baseline and `within_block` of each comparison in a column; each pair once."""
    rows = [row for row in table.rows if testable(table, row, column)]
    pairs = [
        (row, baseline, False)
        for row in rows
        if row not in baselines
        for baseline in baselines
        if baseline in rows
    ]
    for block in table.blocks if within_blocks else ():
        runs = [row for row in block if row.system == "run" and row in rows]
        pairs += [
            (one, other, True)
            for one, other in combinations(runs, 2)
            if (one in baselines) == (other in baselines)
        ]
    return pairs
