"""Which systems differ from the baselines: paired tests over one family, corrected together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from evaluator.significance import (
    benjamini_hochberg,
    bonferroni,
    cohens_d,
    holm,
    paired_t_tests,
    randomization_tests,
)
from orchestrator.report.table import Column, Entry, Row, Table
from xsweep import ConfigError

CORRECTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "holm": holm,
    "bonferroni": bonferroni,
    "bh": benjamini_hochberg,
    "none": np.asarray,
}
TESTS = ("t", "randomization")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row against one baseline in one column, over the same queries."""

    row: Row
    column: Column
    baseline: Row
    difference: float
    """Row's mean minus the baseline's."""
    effect: float
    """Cohen's d of the paired differences: their mean by their standard deviation."""
    queries: int
    p: float
    p_corrected: float
    """After the correction over all comparisons of the report."""
    verdict: str
    """`better` or `worse` when p_corrected < alpha, else `same`: no difference shown."""


def find_baselines(table: Table, names: Sequence[str]) -> tuple[Row, ...]:
    """The rows that names stand for: a row's name, its model, or `first_stage` and `teacher`.

    Raises ConfigError, with the nearest names, for one that is not in the table.
    """
    found: list[Row] = []
    for name in names:
        wanted = name.casefold()
        rows = [row for row in table.rows if wanted in _names(row)]
        if not rows:
            known = {each.name.casefold(): each.name for each in table.rows}
            near = [known[each] for each in get_close_matches(wanted, known, n=3, cutoff=0.5)]
            raise ConfigError(
                f"baseline {name!r} is not in this sweep"
                + (f"; did you mean {' or '.join(map(repr, near))}?" if near else "")
                + f" Its rows: {', '.join(known.values())}"
            )
        found += [row for row in rows if row not in found]
    return tuple(found)


def compare(
    table: Table,
    baselines: Sequence[Row],
    *,
    alpha: float = 0.05,
    correction: str = "holm",
    test: str = "t",
) -> tuple[Comparison, ...]:
    """Every other row against each baseline in each column where both have results.

    Scores are averaged over seeds first, so that a query is one observation. The correction
    takes all these comparisons as one family. Two-sided.

    Raises ConfigError for a test, correction or alpha that is none.
    """
    if correction not in CORRECTIONS:
        raise ConfigError(f"unknown correction {correction!r}: use one of {', '.join(CORRECTIONS)}")
    if test not in TESTS:
        raise ConfigError(f"unknown test {test!r}: use one of {', '.join(TESTS)}")
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is {alpha}: it must lie between 0 and 1, such as 0.05")
    found = [
        (row, column, baseline, p)
        for column in table.columns
        for rows, references in [_in_column(table, column, baselines)]
        for row, p_of_row in zip(
            rows, _p_values(table, column, rows, references, test), strict=True
        )
        for baseline, p in zip(references, p_of_row, strict=True)
    ]
    corrected = CORRECTIONS[correction](np.array([p for *_, p in found]))
    return tuple(
        _comparison(table, row, column, baseline, float(p), float(p_corrected), alpha)
        for (row, column, baseline, p), p_corrected in zip(found, corrected, strict=True)
    )


def stratified_mean(collections: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """The unweighted mean of several collections' means, its standard error, degrees of freedom.

    Each array holds one collection's values, float64[queries]. With sample variances s_c^2 and n_c
    queries in C collections the error is sqrt(sum s_c^2 / n_c) / C; the degrees of freedom are
    Satterthwaite's (1946, doi:10.2307/3002019). [[1, 2, 3], [1, 1, 4]] gives 2, 0.5774 and 3.2.
    """
    means = [values.mean() for values in collections]
    variances = np.array([values.var(ddof=1) / len(values) for values in collections])
    weights = [
        variance**2 / (len(v) - 1) for variance, v in zip(variances, collections, strict=True)
    ]
    total = variances.sum()
    freedom = float(total**2 / sum(weights)) if total else np.inf
    return float(np.mean(means)), float(np.sqrt(total)) / len(collections), freedom


def stratified_t_test(differences: Sequence[np.ndarray]) -> float:
    """Two-sided p that the unweighted mean of several collections' mean differences is 0.

    `differences` holds each collection's paired differences, float64[queries]. One collection
    gives the paired t-test, two give Welch's test of the first against the negated second. Without
    any variance p is 1 where the mean is 0, else 0. [[1, 2, 3], [1, 1, 4]]: t = 3.4641, p = 0.0366.
    """
    from scipy.special import stdtr

    mean, error, freedom = stratified_mean(differences)
    if error == 0:
        return 0.0 if mean else 1.0
    return float(2 * stdtr(freedom, -abs(mean) / error))


def _names(row: Row) -> set[str]:
    bare = f"{row.model} {row.objective}".strip()
    return {each.casefold() for each in (row.name, bare, row.system) if each != "run"}


def _in_column(
    table: Table, column: Column, baselines: Sequence[Row]
) -> tuple[list[Row], list[Row]]:
    """The rows to test in a column and the baselines to test against: those with results."""
    able = [
        row
        for row in table.rows
        if (row, column) in table.entries and testable(table.entries[row, column])
    ]
    return [row for row in able if row not in baselines], [row for row in baselines if row in able]


def testable(entry: Entry) -> bool:
    """Whether there are values to test with: a mean over a single query has no variance."""
    return bool(entry.means) and all(len(values) > 1 for values in entry.per_query)


def _p_values(
    table: Table, column: Column, rows: Sequence[Row], baselines: Sequence[Row], test: str
) -> np.ndarray:
    """p[rows, baselines]."""
    if not rows or not baselines:
        return np.empty((len(rows), len(baselines)))
    systems, references = (
        [table.entries[row, column].per_query for row in group] for group in (rows, baselines)
    )
    if len(column.collections) > 1:
        if test != "t":
            raise ConfigError(f"test {test!r} has no form for suites: use t, or --by collection")
        return np.array([[stratified_t_test(subtract(a, b)) for b in references] for a in systems])
    tests = {"t": paired_t_tests, "randomization": randomization_tests}[test]
    return tests([a for (a,) in systems], [b for (b,) in references])


def _comparison(
    table: Table,
    row: Row,
    column: Column,
    baseline: Row,
    p: float,
    p_corrected: float,
    alpha: float,
) -> Comparison:
    ours, theirs = table.entries[row, column].per_query, table.entries[baseline, column].per_query
    differences = subtract(ours, theirs)
    difference = float(np.mean([values.mean() for values in differences]))
    return Comparison(
        row=row,
        column=column,
        baseline=baseline,
        difference=difference,
        effect=cohens_d(ours[0], theirs[0]) if len(ours) == 1 else _stratified_d(differences),
        queries=sum(map(len, ours)),
        p=p,
        p_corrected=p_corrected,
        verdict="same" if p_corrected >= alpha else "better" if difference > 0 else "worse",
    )


def subtract(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The paired differences, collection by collection."""
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _stratified_d(differences: Sequence[np.ndarray]) -> float:
    """The mean over collections of their mean difference, by the root of their mean variance."""
    mean = float(np.mean([values.mean() for values in differences]))
    spread = float(np.sqrt(np.mean([values.var(ddof=1) for values in differences])))
    return mean / spread if spread else float(np.copysign(np.inf, mean)) if mean else 0.0
