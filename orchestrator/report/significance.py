"""Significance of a report's differences: paired tests, corrected together as one family.

Also mean ranks of levels over blocks and their critical difference (Friedman, Nemenyi).
"""

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
from xsweep.orchestrator.formatting import p_value
from xsweep.orchestrator.report.report import Comparison, Ranking, ReportOptions, Section
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


def rank(
    measure: str, choice: str, names: Sequence[str], values_BL: np.ndarray, over: str, alpha: float
) -> Ranking:
    """Mean ranks of the levels over blocks, Friedman's p and the critical difference.

    float64[blocks, levels], higher is better. Demšar 2006 (jmlr.org/papers/v7/demsar06a.html): the
    critical difference of k levels over N blocks is q sqrt(k (k + 1) / 6 N), q the studentized
    range's quantile divided by the root of two: 2.569 sqrt(4 · 5 / (6 · 14)) = 1.25 at 0.05.
    """
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    blocks, count = values_BL.shape
    # averages of the same numbers differ in their last bits and must tie
    ranks_BL = rankdata(-np.round(values_BL, 12), axis=1)
    quantile = float(studentized_range.ppf(1 - alpha, count, np.inf)) / np.sqrt(2)
    critical = float(quantile * np.sqrt(count * (count + 1) / (6 * blocks)))
    means = ranks_BL.mean(axis=0).tolist()
    order = sorted(range(count), key=lambda level: (means[level], level))
    ordered = [means[level] for level in order]
    return Ranking(
        measure=measure,
        choice=choice,
        levels=tuple(names[level] for level in order),
        mean_ranks=tuple(ordered),
        blocks=blocks,
        over=over,
        p=float(friedmanchisquare(*ranks_BL.T).pvalue) if np.ptp(ranks_BL) else 1.0,
        critical=critical,
        cliques=tuple(cliques(ordered, critical)),
    )


def cliques(mean_ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """Maximal runs of at least two sorted ranks within the critical difference.

    [1.0, 1.5, 2.5, 4.0] with 1.6: indices (0, 2) and (2, 3).
    """
    found: list[tuple[int, int]] = []
    for first, best in enumerate(mean_ranks):
        last = first + sum(each - best < critical for each in mean_ranks[first + 1 :])
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def rankings_section(found: Sequence[Ranking], alpha: float) -> Section:
    """Mean ranks as the critical-difference diagrams draw them."""
    lines: list[tuple[str, ...]] = []
    for each in found:
        for place, (level, mean) in enumerate(zip(each.levels, each.mean_ranks, strict=True)):
            groups = [
                chr(ord("A") + number)
                for number, (first, last) in enumerate(each.cliques)
                if first <= place <= last
            ]
            lines.append((each.choice, level, f"{mean:.2f}", " ".join(groups)))
    details = "; ".join(
        f"{each.choice}: {each.blocks} {each.over}, Friedman {p_value(each.p)}, critical "
        f"difference {each.critical:.2f}"
        for each in found
    )
    return Section(
        "Mean ranks",
        ("choice", "level", "mean rank", "group"),
        lines,
        "1 is best; other choices are averaged. Levels that share a group do not differ "
        f"significantly by Nemenyi's test at {alpha:g} ({details}).",
    )
