"""Effects of the design choices: objective, backbone and teacher, in sections per measure."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from xsweep.evaluator.significance import CORRECTIONS, corrected, satterthwaite
from xsweep.orchestrator.formatting import listed, p_value
from xsweep.orchestrator.report.report import Ranking, Report, Section
from xsweep.orchestrator.report.significance import (
    CONFIDENCE,
    paired_statistics,
    rank,
    rankings_section,
    testable,
)
from xsweep.orchestrator.report.table import Column, Row, Table, build_table

CHOICES = {"backbone": "model", "objective": "objective", "teacher": "teacher"}
"""Choices, and the fields of a row that hold their levels."""
MAX_NAMED_COLUMNS = 6
"""Wins tables with more columns number them: the names would be wider than a page."""
RANKED_LEVELS = range(3, 21)
"""Numbers of levels that are ranked: two need no diagram, and more than 20 cannot be read."""
MIN_RANKED_COLLECTIONS = 5
"""With fewer collections, ranks are taken over queries."""
Factors = dict[str, list[str]]
"""Choice -> its level in every run."""


def with_effects(report: Report) -> Report:
    """The report with sections on the effects of the choices, and rankings to draw.

    A measure has none if fewer than two runs have results on every collection.
    """
    sections: list[Section] = []
    ranked: list[Ranking] = []
    for runs in complete_runs(report):
        if runs.factors:
            own = rankings(report, runs)
            made = (
                marginal_section(report, runs),
                contrasts_section(report, runs),
                variance_section(runs),
                wins_section(report, runs),
                rankings_section(own, report.options.alpha),
            )
            sections += [
                each._replace(title=f"{each.title}, {runs.measure}") for each in made if each.lines
            ]
            ranked += own
    return replace(report, sections=(*report.sections, *sections), rankings=tuple(ranked))


@dataclass(frozen=True)
class CompleteRuns:
    """The runs with results on every collection of the sweep, for one measure."""

    measure: str
    table: Table
    """One column per collection, whatever the report's columns are."""
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    excluded: int
    """Number of runs without results on some collection."""
    factors: Factors
    """The choices in which the runs differ, without confounded ones."""
    confounded: list[str]

    @property
    def note(self) -> str:
        """Sentences on confounded choices and excluded runs."""
        note = ""
        if self.confounded:
            note += f" Confounded with these factors and left out: {listed(self.confounded)}."
        if self.excluded:
            total = len(self.rows) + self.excluded
            note += f" {self.excluded} of {total} systems lack results and are excluded."
        return note

    @cached_property
    def scores(self) -> list[np.ndarray]:
        """Scores per collection, means over seeds: float64[rows, queries]."""
        entries = self.table.entries
        return [
            np.stack([entries[row, column].per_query[0] for row in self.rows])
            for column in self.columns
        ]

    @cached_property
    def covariances(self) -> list[np.ndarray]:
        """Covariances of the rows over queries, per collection: float64[rows, rows]."""
        return [np.atleast_2d(np.cov(each)) for each in self.scores]

    @cached_property
    def means(self) -> np.ndarray:
        """Means over seeds and queries: float64[rows, collections]."""
        entries = self.table.entries
        return np.array(
            [[entries[row, column].mean for column in self.columns] for row in self.rows]
        )

    @cached_property
    def by_seed(self) -> list[np.ndarray]:
        """Means per row, of the seeds that have all collections: float64[seeds, collections]."""
        found = []
        for row in self.rows:
            means = [self.table.entries[row, column].means for column in self.columns]
            seeds = [seed for seed in means[0] if all(seed in each for each in means)]
            values = np.array([[each[seed] for each in means] for seed in seeds])
            found.append(values.reshape(-1, len(means)))
        return found

    @cached_property
    def seed_variance(self) -> tuple[float, int]:
        """Pooled variance over seeds of a run's mean over collections; degrees of freedom."""
        runs = [each.mean(axis=1) for each in self.by_seed if len(each)]
        freedom = sum(len(each) - 1 for each in runs)
        squares = sum(float(((each - each.mean()) ** 2).sum()) for each in runs)
        return (squares / freedom if freedom else float("nan")), freedom


def complete_runs(report: Report) -> list[CompleteRuns]:
    """The runs to compare, for every measure that at least two have on all collections."""
    measures = list(dict.fromkeys(column.measure for column in report.table.columns))
    table = report.table
    if report.options.by != "collection":
        table = build_table(report.cells, measures)
    runs = [row for row in table.rows if row.system == "run"]
    found = []
    for measure in measures:
        columns = tuple(column for column in table.columns if column.measure == measure)
        rows = tuple(row for row in runs if all(testable(table, row, column) for column in columns))
        if len(rows) > 1:
            excluded = len(runs) - len(rows)
            found.append(CompleteRuns(measure, table, rows, columns, excluded, *factors_of(rows)))
    return found


def factors_of(rows: Sequence[Row]) -> tuple[Factors, list[str]]:
    """The choices in which rows differ, and those confounded with the choices before them.

    A teacher that always goes with the same objective is confounded with the objective.
    """
    factors: Factors = {}
    confounded = []
    for name, field in CHOICES.items():
        levels = [getattr(row, field) for row in rows]
        free = len(set(levels)) - 1
        if free and _rank(factors | {name: levels}) == _rank(factors) + free:
            factors[name] = levels
        elif free:
            confounded.append(name)
    return factors, confounded


def _rank(factors: Factors) -> int:
    return int(np.linalg.matrix_rank(design(factors))) if factors else 1


def design(factors: Factors) -> np.ndarray:
    """Intercept and one indicator per level: float64[rows, 1 + levels], rank deficient."""
    indicators = [
        np.array(column)[:, None] == np.array(list(dict.fromkeys(column)))
        for column in factors.values()
    ]
    return np.hstack([np.ones((len(indicators[0]), 1)), *indicators])


def intervals(
    runs: CompleteRuns, weights_LR: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Weighted sums of the runs' means, and half the widths of their 95% intervals: float64[L].

    `weights_LR`: float64[sums, rows]. Intervals by source of variation: `queries`, other queries of
    the same collections; `seeds`, other seeds of the same trainings (variance pooled within runs);
    `collections`, a t interval over them. With one seed or one collection there is no interval.
    """
    from scipy.special import stdtrit

    upper = (1 + CONFIDENCE) / 2
    queries = [each.shape[1] for each in runs.scores]
    error_L, freedom_L = satterthwaite(
        [
            np.einsum("lr,rs,ls->l", weights_LR, covariance, weights_LR, optimize=True) / count
            for covariance, count in zip(runs.covariances, queries, strict=True)
        ],
        [count - 1 for count in queries],
        [1 / len(queries)] * len(queries),
    )
    widths = {"queries": np.where(error_L > 0, error_L * stdtrit(freedom_L, upper), 0.0)}
    variance, freedom = runs.seed_variance
    if freedom:
        seeds_R = np.array([max(len(each), 1) for each in runs.by_seed])
        error_L = np.sqrt(variance * (weights_LR**2 / seeds_R).sum(axis=1))
        widths["seeds"] = error_L * stdtrit(freedom, upper)
    means_LC = weights_LR @ runs.means
    collections = means_LC.shape[1]
    if collections > 1:
        error_L = means_LC.std(axis=1, ddof=1) / np.sqrt(collections)
        widths["collections"] = error_L * stdtrit(collections - 1, upper)
    return means_LC.mean(axis=1), widths


def _interval_texts(
    report: Report, values_L: np.ndarray, widths: dict[str, np.ndarray]
) -> list[tuple[str, ...]]:
    """The value and its intervals: (`+0.012`, `+0.010 to +0.014`, ...) for every sum."""
    return [
        (
            report.signed(value),
            *(f"{report.signed(value - w)} to {report.signed(value + w)}" for w in around),
        )
        for value, *around in zip(values_L, *widths.values(), strict=True)
    ]


def marginal_weights(factors: Factors, name: str) -> tuple[list[str], np.ndarray]:
    """Levels of a factor, and the rows' weights in their marginal means: float64[levels, rows].

    Least squares of an additive model: in a full grid the plain mean over the level's rows; missing
    rows count as the model predicts them, with equal shares of the other factors' levels.
    """
    levels = list(dict.fromkeys(factors[name]))
    wanted = [np.ones((len(levels), 1))]
    for other, column in factors.items():
        count = len(set(column))
        share = np.eye(count) if other == name else np.full((len(levels), count), 1 / count)
        wanted.append(share)
    return levels, np.hstack(wanted) @ np.linalg.pinv(design(factors))


def marginal_section(report: Report, runs: CompleteRuns) -> Section:
    """Mean of every level with its difference from the mean over the levels."""
    lines: list[tuple[str, ...]] = []
    for name in runs.factors:
        levels, weights_LR = marginal_weights(runs.factors, name)
        means_L = weights_LR @ runs.means.mean(axis=1)
        values_L, widths = intervals(runs, weights_LR - weights_LR.mean(axis=0))
        texts = _interval_texts(report, values_L, widths)
        for level, mean, effect in zip(levels, means_L, texts, strict=True):
            lines.append((name, level, report.number(float(mean)), *effect))
    return Section(
        "Marginal means",
        ("factor", "level", "mean", "effect", *(f"over {source}" for source in widths)),
        lines,
        "Effect: difference from the mean over the factor's levels, other factors held equal "
        "(additive least-squares model), unweighted over collections. The "
        f"{CONFIDENCE:.0%} intervals cover variation over {listed(list(widths))}, each with "
        f"everything else fixed.{runs.note}",
    )


class Contrast(NamedTuple):
    """Two levels of one choice, over the pairs of runs that differ in nothing else."""

    choice: str
    better: str
    worse: str
    pairs: tuple[tuple[int, int], ...]
    """Row indices of the runs, the better level first."""


def contrasts(rows: Sequence[Row]) -> Iterator[Contrast]:
    """Pairs of objectives with equal backbone and teacher, and of teachers with equal backbone and
    objective; each backbone against the one before it in the grid, and the last against the first.
    """
    place = {row: i for i, row in enumerate(rows)}
    for choice, field in CHOICES.items():
        levels = list(dict.fromkeys(getattr(row, field) for row in rows))
        compared = list(combinations(levels, 2))
        if choice == "backbone" and len(levels) > 2:
            compared = [*pairwise(levels), (levels[0], levels[-1])]
        for one, other in compared:
            pairs = tuple(
                (place[twin], place[row])
                for row in rows
                if getattr(row, field) == one and (twin := row._replace(**{field: other})) in place
            )
            if pairs:
                yield Contrast(choice, other, one, pairs)


def contrasts_section(report: Report, runs: CompleteRuns) -> Section:
    """Differences between levels of one choice while the others are equal."""
    found = list(contrasts(runs.rows))
    if not found:
        return Section("At equal data", (), [], "")
    weights_LR = np.zeros((len(found), len(runs.rows)))
    for weights_R, contrast in zip(weights_LR, found, strict=True):
        for one, other in contrast.pairs:
            weights_R[one] += 1 / len(contrast.pairs)
            weights_R[other] -= 1 / len(contrast.pairs)
    values_L, widths = intervals(runs, weights_LR)
    texts = _interval_texts(report, values_L, widths)
    lines = []
    largest: dict[str, tuple[float, str]] = {}
    for (choice, better, worse, pairs), value, text in zip(found, values_L, texts, strict=True):
        name = f"{better} over {worse}"
        largest[choice] = max(largest.get(choice, (-1.0, "")), (abs(float(value)), name))
        lines.append((choice, name, str(len(pairs)), *text))
    sizes = ", ".join(
        f"{choice} {report.number(size)} ({name})" for choice, (size, name) in largest.items()
    )
    note = (
        "Mean difference over the pairs of systems that differ only in this choice: objectives "
        "with the same backbone and teacher, teachers (that is, data and negatives) with the same "
        f"backbone and objective. {CONFIDENCE:.0%} intervals as above, without correction. "
        f"Largest: {sizes}."
    )
    if "objective" not in largest and len({row.objective for row in runs.rows}) > 1:
        note += (
            " No two objectives share a teacher: the effect of an objective cannot be separated "
            "from that of its data."
        )
    heads = ("choice", "difference of", "pairs", "difference", *(f"over {each}" for each in widths))
    return Section("At equal data", heads, lines, note)


def variance_section(runs: CompleteRuns) -> Section:
    """Shares of the sum of squares over all seeds' means on all collections, with F tests."""
    rows = [row for row, seeds in enumerate(runs.by_seed) for _ in seeds]
    values = np.concatenate(runs.by_seed).ravel()
    several = len(runs.columns) > 1
    factors = runs.factors
    terms = {
        name: [levels[row] for row in rows for _ in runs.columns]
        for name, levels in factors.items()
    }
    pairs = [("backbone", "objective")] if {"backbone", "objective"} <= factors.keys() else []
    if several:
        terms["collection"] = [column.place for _ in rows for column in runs.columns]
        pairs += [(name, "collection") for name in factors]
    squares = sums_of_squares(terms, values, pairs)
    variance, seeds_freedom = runs.seed_variance
    if seeds_freedom:
        squares["seeds"] = variance * seeds_freedom * len(runs.columns), seeds_freedom
    total = float(((values - values.mean()) ** 2).sum())
    squares["rest"] = max(total - sum(square for square, _ in squares.values()), 0.0), 0
    within = total - squares["collection"][0] if several else total
    lines = []
    for name, (square, freedom) in squares.items():
        is_choice = set(name.split(" × ")) <= factors.keys()
        line = {"source": name, "share": f"{square / total:.1%}" if total else "–"}
        if several:
            shown = within and name != "collection"
            line["share within collections"] = f"{square / within:.1%}" if shown else ""
        if seeds_freedom:
            p = f_test(square, freedom, *squares["seeds"]) if is_choice else ""
            line["p, seeds random"] = p
        if several:
            error = squares.get(f"{name} × collection")
            line["p, collections random"] = f_test(square, freedom, *error) if error else ""
        lines.append(line)
    note = "Sums of squares over the means of all seeds; rest: sources that are not listed."
    if not balanced(terms):
        note += (
            " The grid is unbalanced: each share is what its source explains beyond those above it "
            "(type I)."
        )
    if seeds_freedom:
        note += " Seeds: variation of a system's mean between its seeds."
    errors = ["the variation between seeds"] if seeds_freedom else []
    errors += ["the interaction of the choice with collections"] if several else []
    if errors:
        note += f" p: F test against {' or '.join(errors)}."
    texts = [tuple(line.values()) for line in lines]
    return Section("Share of the variance", tuple(lines[0]), texts, note + runs.note)


def sums_of_squares(
    factors: Factors, values: np.ndarray, interactions: Sequence[tuple[str, str]] = ()
) -> dict[str, tuple[float, int]]:
    """Type I sum of squares and degrees of freedom of each factor, then of pairs of factors.

    `values`: float64[observations]. A term gets what it explains beyond the terms before it, so
    that the sums never exceed the total; in a balanced grid types I, II and III are the same.
    """
    terms = dict(factors)
    for one, other in interactions:
        both = zip(factors[one], factors[other], strict=True)
        terms[f"{one} × {other}"] = list(map(" × ".join, both))
    matrix = np.column_stack([design(terms), values])
    matrix -= matrix.mean(axis=0)
    products = matrix.T @ matrix  # after each term, those of the residuals
    found, end = {}, 1
    for name, levels in terms.items():
        own, end = slice(end, end + len(set(levels))), end + len(set(levels))
        lengths, directions = np.linalg.eigh(products[own, own])
        free = lengths > 1e-9 * len(values)
        explained = (directions[:, free] / np.sqrt(lengths[free])).T @ products[own]
        found[name] = float((explained[:, -1] ** 2).sum()), len(explained)
        products -= explained.T @ explained
    return found


def balanced(factors: Factors) -> bool:
    """True if every combination of levels was observed, all equally often."""
    counts = Counter(zip(*factors.values(), strict=True))
    cells = np.prod([len(set(column)) for column in factors.values()])
    return len(counts) == cells and len(set(counts.values())) == 1


def f_test(square: float, freedom: int, error_square: float, error_freedom: int) -> str:
    """p of the ratio of two mean squares as text; empty without degrees of freedom or error."""
    from scipy.special import fdtrc

    if freedom < 1 or error_freedom < 1 or error_square <= 0:
        return ""
    ratio = (square / freedom) / (error_square / error_freedom)
    return p_value(float(fdtrc(freedom, error_freedom, ratio))).removeprefix("p ").lstrip("= ")


def wins_section(report: Report, runs: CompleteRuns) -> Section:
    """Number of times one objective beats another on the same backbone and collection."""

    def kind(row: Row) -> str:
        return f"{row.objective} ({row.teacher})" if report.teachers_shown else row.objective

    title = "Wins of the row over the column"
    kinds = list(dict.fromkeys(map(kind, runs.rows)))
    pairs = [
        pair
        for block in runs.table.blocks
        for pair in combinations([row for row in block if row in runs.rows], 2)
    ]
    if len(kinds) < 2 or not pairs:
        return Section(title, (), [], "")
    options = report.options
    tested = [paired_statistics(runs.table, column, pairs) for column in runs.columns]
    p_values = corrected(np.concatenate([each.p for each in tested]), options.correction)
    gains = np.concatenate([each.difference for each in tested])
    counts: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(3, dtype=int))
    for (one, other), gain, p in zip(
        pairs * len(runs.columns), gains.tolist(), p_values.tolist(), strict=True
    ):
        for winner, loser, own in ((one, other, gain), (other, one, -gain)):
            won = own > 0
            counts[kind(winner), kind(loser)] += (won, 1, won and p < options.alpha)
    names = heads = kinds
    if len(kinds) > MAX_NAMED_COLUMNS:
        heads = [str(number) for number in range(1, len(kinds) + 1)]
        names = [f"{number} {kind}" for number, kind in zip(heads, kinds, strict=True)]
    lines = []
    for name, a in zip(names, kinds, strict=True):
        texts = ("{}/{} ({})".format(*counts[a, b]) if (a, b) in counts else "" for b in kinds)
        lines.append((name, *texts))
    return Section(
        title,
        ("", *heads),
        lines,
        "n/m (k): higher mean in n of m pairs on the same backbone and collection, k of them "
        f"significant (paired t-test, p < {options.alpha:g} "
        f"{CORRECTIONS[options.correction]} over {len(gains)} pairs).",
    )


def rankings(report: Report, runs: CompleteRuns) -> list[Ranking]:
    """Rankings of the levels of each choice, others averaged, and of the systems themselves."""
    choices = dict(runs.factors)
    if len(choices) > 1:
        choices["system"] = [report.name(row) for row in runs.rows]
    found = []
    for choice, column in choices.items():
        counts = Counter(column)
        if len(counts) not in RANKED_LEVELS or len(set(counts.values())) > 1:
            continue
        weights_LR = np.array(
            [[(each == level) / counts[level] for each in column] for level in counts]
        )
        if len(runs.columns) >= MIN_RANKED_COLLECTIONS:
            values_BL, over = (weights_LR @ runs.means).T, "collections"
        else:
            values_BL = np.concatenate([weights_LR @ each for each in runs.scores], axis=1).T
            over = "queries"
        alpha = report.options.alpha
        found.append(rank(runs.measure, choice, list(counts), values_BL, over, alpha))
    return found
