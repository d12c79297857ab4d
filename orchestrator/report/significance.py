"""Which systems differ from the baselines: paired tests over one family, corrected together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from xsweep.errors import ConfigError, did_you_mean
from xsweep.evaluator.significance import (
    CORRECTIONS,
    PairedT,
    corrected,
    paired_randomization,
    paired_t,
)
from xsweep.orchestrator.report.table import Column, Entry, Row, Table

LISTED = 12
"""So many rows are named where one was not found."""


TESTS = ("t", "randomization")


Pairing = tuple[Row, Row, bool]
"""Row, the one it is compared with, and whether they belong to one backbone's block."""


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
    within_block: bool = False
    """Whether both are systems of one backbone and neither was asked for as a baseline."""

    @property
    def reversed(self) -> "Comparison":
        """The same comparison as the other one sees it."""
        verdict = {"better": "worse", "worse": "better"}.get(self.verdict, self.verdict)
        return replace(
            self,
            row=self.baseline,
            baseline=self.row,
            difference=-self.difference,
            effect=-self.effect,
            verdict=verdict,
        )


def find_baselines(table: Table, names: Sequence[str]) -> tuple[Row, ...]:
    """The rows that names stand for: a row's name, its model, or `first_stage` and `teacher`.

    Raises ConfigError, with the nearest names, for one that is not in the table.
    """
    found: list[Row] = []
    for name in names:
        found += [row for row in rows_named(table.rows, name) if row not in found]
    return tuple(found)


def rows_named(rows: Sequence[Row], name: str, what: str = "baseline") -> list[Row]:
    """The rows of that name, model or kind. Raises ConfigError where there is none."""
    wanted = name.casefold()
    found = [row for row in rows if wanted in _names(row)]
    if not found:
        known = [each.name for each in rows]
        hint = did_you_mean(name, known, most=3)
        raise ConfigError(
            f"{what} {name!r} is not in this sweep"
            + (f"; {hint}" if hint else ".")
            + f" Its rows: {', '.join(known[:LISTED])}"
            + (", ..." if len(known) > LISTED else "")
        )
    return found


def compare_rows(
    table: Table,
    baselines: Sequence[Row],
    *,
    alpha: float = 0.05,
    correction: str = "holm",
    test: str = "t",
    pairs: bool = False,
) -> tuple[Comparison, ...]:
    """Every other row against each baseline in each column where both have results.

    With `pairs` also every pair of a backbone's systems. Scores are averaged over seeds first, so
    that a query is one observation. The correction takes all these comparisons as one family.
    Two-sided.

    Raises ConfigError for a test, correction or alpha that is none.
    """
    if correction not in CORRECTIONS:
        raise ConfigError(f"unknown correction {correction!r}: use one of {', '.join(CORRECTIONS)}")
    if test not in TESTS:
        raise ConfigError(f"unknown test {test!r}: use one of {', '.join(TESTS)}")
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is {alpha}: it must lie between 0 and 1, such as 0.05")
    found: list[tuple[Column, Pairing]] = []
    statistics: list[PairedT] = []
    for column in table.columns:
        duels = _duels(table, column, baselines, pairs)
        if duels:
            found += [(column, duel) for duel in duels]
            statistics.append(paired_statistics(table, column, [duel[:2] for duel in duels], test))
    if not found:
        return ()
    difference, effect, p = (np.concatenate(parts) for parts in zip(*statistics, strict=True))
    return tuple(
        Comparison(
            row=row,
            column=column,
            baseline=baseline,
            difference=gain,
            effect=d,
            queries=sum(map(len, table.entries[row, column].per_query)),
            p=p_alone,
            p_corrected=p_together,
            verdict="same" if p_together >= alpha else "better" if gain > 0 else "worse",
            within_block=within,
        )
        for (column, (row, baseline, within)), gain, d, p_alone, p_together in zip(
            found,
            *(each.tolist() for each in (difference, effect, p, corrected(p, correction))),
            strict=True,
        )
    )


def paired_statistics(
    table: Table, column: Column, pairs: Sequence[tuple[Row, Row]], test: str = "t"
) -> PairedT:
    """Difference, effect and p of each pair in a column, where both have results."""
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


def _names(row: Row) -> set[str]:
    bare = f"{row.model} {row.objective}".strip()
    return {each.casefold() for each in (row.name, bare, row.system) if each != "run"}


def _duels(table: Table, column: Column, baselines: Sequence[Row], pairs: bool) -> list[Pairing]:
    """Who is compared with whom in a column: only rows with results, each pair once."""
    able = [
        row
        for row in table.rows
        if (row, column) in table.entries and testable(table.entries[row, column])
    ]
    duels = [
        (row, baseline, False)
        for row in able
        if row not in baselines
        for baseline in baselines
        if baseline in able
    ]
    if pairs:
        for block in table.blocks:
            runs = [row for row in block if row.system == "run" and row in able]
            duels += [
                (one, other, True)
                for one, other in combinations(runs, 2)
                if (one in baselines) == (other in baselines)
            ]
    return duels


def testable(entry: Entry) -> bool:
    """Whether there are values to test with: a mean over a single query has no variance."""
    return bool(entry.means) and all(len(values) > 1 for values in entry.per_query)
