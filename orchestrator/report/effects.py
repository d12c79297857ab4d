"""What effects are computed from: the systems with results on every collection, one measure.

What the choice of objective, backbone and teacher is worth, averaged over the others.

Choices compared with all others kept equal, and how often each objective wins.

The share of the variance that each choice explains, collections and seeds being random.

Mean ranks over collections with the critical difference: Friedman's test, then Nemenyi's.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np

from xsweep.evaluator.significance import corrected, satterthwaite
from xsweep.orchestrator.report.caption import CORRECTIONS, listed
from xsweep.orchestrator.report.report import Ranking, Report, Section
from xsweep.orchestrator.report.significance import paired_statistics, testable
from xsweep.orchestrator.report.table import Column, Row, Table, build_table

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


FIELDS = {"backbone": "model", "objective": "objective", "teacher": "teacher"}


MOST_NAMED = 6
"""Columns that can bear names; more are numbered."""


class Contrast(NamedTuple):
    """Two levels of one choice, over the pairs of systems that differ in nothing else."""

    choice: str
    better: str
    worse: str
    pairs: tuple[tuple[int, int], ...]
    """Places of the systems among the rows."""

    def weights(self, rows: int) -> np.ndarray:
        """The mean difference as a weighted sum of the systems: float64[rows]."""
        found = np.zeros(rows)
        for one, other in self.pairs:
            found[one] += 1 / len(self.pairs)
            found[other] -= 1 / len(self.pairs)
        return found


def contrasts(rows: Sequence[Row]) -> Iterator[Contrast]:
    """Every two objectives at equal backbone and teacher, two teachers at equal backbone and
    objective, and each backbone against the one before it in the grid, and the last against the
    first.
    """
    for choice, field in FIELDS.items():
        others = [each for each in FIELDS.values() if each != field]
        by_level: dict[str, dict[tuple[str, ...], int]] = {}
        for place, row in enumerate(rows):
            rest = tuple(getattr(row, other) for other in others)
            by_level.setdefault(getattr(row, field), {})[rest] = place
        levels = list(by_level)
        two = list(combinations(levels, 2))
        if choice == "backbone" and len(levels) > 2:
            two = [*pairwise(levels), (levels[0], levels[-1])]
        for one, other in two:
            shared = [rest for rest in by_level[one] if rest in by_level[other]]
            if shared:
                places = tuple((by_level[other][rest], by_level[one][rest]) for rest in shared)
                yield Contrast(choice, other, one, places)


def contrasts_section(report: Report, data: Measured) -> Section:
    """The effect of the objective at equal data next to that of data and of the backbone."""
    found = list(contrasts(data.rows))
    heads = interval_heads(data)
    title, note = "At equal data", ""
    if not found:
        return Section(title, ("choice",), [], note)
    values = intervals(data, np.array([each.weights(len(data.rows)) for each in found]))
    lines = []
    widest: dict[str, tuple[float, str]] = {}
    for each, value in zip(found, values, strict=True):
        named = f"{each.better} over {each.worse}"
        size = abs(value["value"])
        widest[each.choice] = max(widest.get(each.choice, (-1.0, "")), (size, named))
        lines.append(
            (
                each.choice,
                named,
                str(len(each.pairs)),
                signed(report, value["value"]),
                *interval_texts(report, value, heads),
            )
        )
    largest = ", ".join(
        f"{choice} {report.number(size)} ({named})" for choice, (size, named) in widest.items()
    )
    note = (
        "Mean difference over the pairs of systems that differ in this choice alone: objectives at "
        "equal backbone and teacher, teachers (that is: data and negatives) at equal backbone and "
        f"objective. {CONFIDENCE:.0%} intervals as above, uncorrected. Largest: {largest}."
    )
    if "objective" not in widest and len({row.objective for row in data.rows}) > 1:
        note += (
            " No two objectives share a teacher: what an objective is worth cannot be told from "
            "what its data are worth."
        )
    columns = ("choice", "difference of", "pairs", "difference")
    return Section(title, (*columns, *(f"over {head}" for head in heads)), lines, note)


def wins_section(report: Report, data: Measured) -> Section:
    """How often one objective's mean is above another's, backbone and collection being equal."""
    kinds = list(dict.fromkeys(_kind(report, row) for row in data.rows))
    title = "Wins of the row over the column"
    pairs = [
        pair
        for block in data.table.blocks
        for pair in combinations([row for row in block if row in data.rows], 2)
    ]
    if len(kinds) < 2 or not pairs:
        return Section(title, ("",), [], "")
    tested = [paired_statistics(data.table, column, pairs) for column in data.columns]
    p_values = corrected(np.concatenate([each.p for each in tested]), report.correction)
    gains = np.concatenate([each.difference for each in tested])
    held: Counter[tuple[str, str]] = Counter()
    won: Counter[tuple[str, str]] = Counter()
    clearly: Counter[tuple[str, str]] = Counter()
    for (one, other), gain, p in zip(
        pairs * len(data.columns), gains.tolist(), p_values.tolist(), strict=True
    ):
        pair = _kind(report, one), _kind(report, other)
        for winner, own in ((pair, gain), (pair[::-1], -gain)):
            held[winner] += 1
            won[winner] += own > 0
            clearly[winner] += own > 0 and p < report.alpha
    # Many names side by side would be wider than any page: then they are numbered.
    numbered = len(kinds) > MOST_NAMED
    names = [f"{n} {kind}" for n, kind in enumerate(kinds, 1)] if numbered else kinds
    heads = [str(n) for n in range(1, len(kinds) + 1)] if numbered else kinds
    return Section(
        title,
        ("", *heads),
        [
            (
                name,
                *(
                    f"{won[a, b]}/{held[a, b]} ({clearly[a, b]})" if held[a, b] else ""
                    for b in kinds
                ),
            )
            for name, a in zip(names, kinds, strict=True)
        ],
        "n/m (k): the better mean in n of m pairs of the same backbone and collection, k of them "
        f"significantly (paired t-test, p < {report.alpha:g} "
        f"{CORRECTIONS[report.correction]} over {len(gains)} pairs).",
    )


def _kind(report: Report, row: Row) -> str:
    return f"{row.objective} ({row.teacher})" if report.teachers_shown else row.objective


def variance_section(data: Measured, factors: Factors, notes: str) -> Section:
    """Shares of the sum of squares over all seeds' means on all collections, with F tests."""
    observed = [
        (place, column.place, float(mean))
        for place, seeds in enumerate(data.by_seed)
        for means in seeds
        for column, mean in zip(data.columns, means, strict=True)
    ]
    repeated = {
        name: [levels[place] for place, _, _ in observed] for name, levels in factors.items()
    }
    several = len(data.columns) > 1
    pairs = [("backbone", "objective")] if {"backbone", "objective"} <= factors.keys() else []
    if several:
        repeated["collection"] = [collection for _, collection, _ in observed]
        pairs += [(name, "collection") for name in factors]
    values = np.array([mean for *_, mean in observed])
    squares = sums_of_squares(repeated, values, pairs)
    variance, seeds_freedom = data.seed_variance
    if seeds_freedom:
        squares["seeds"] = variance * seeds_freedom * len(data.columns), seeds_freedom
    total = float(((values - values.mean()) ** 2).sum())
    squares["rest"] = max(total - sum(square for square, _ in squares.values()), 0.0), 0
    apart = total - squares["collection"][0] if several else total
    lines = []
    for name, (square, freedom) in squares.items():
        is_choice = set(name.split(" × ")) <= factors.keys()
        line = [name, f"{square / total:.1%}" if total else "–"]
        if several:
            line.append(f"{square / apart:.1%}" if name != "collection" and apart else "")
        if seeds_freedom:
            line.append(_p(f_test(square, freedom, *squares["seeds"])) if is_choice else "")
        if several:
            error = squares.get(f"{name} × collection")
            line.append(_p(f_test(square, freedom, *error)) if error else "")
        lines.append(tuple(line))
    heads = ["source", "share"]
    heads += ["of what is not collection"] if several else []
    heads += ["p, seeds random"] if seeds_freedom else []
    heads += ["p, collections random"] if several else []
    note = "Sums of squares over the means of all seeds; the rest is what is not listed."
    if not balanced(repeated):
        note += (
            " Not every combination has equally many results: each share is what its source "
            "explains beyond those above it (type I)."
        )
    if seeds_freedom:
        note += " Seeds: variation of a system's mean among its seeds."
    if several or seeds_freedom:
        against = ["the variation among seeds"] if seeds_freedom else []
        against += ["that of the same choice among collections"] if several else []
        note += f" p: F test against {' or '.join(against)}."
    return Section("Share of the variance", tuple(heads), lines, note + notes)


def sums_of_squares(
    factors: Factors, values: np.ndarray, interactions: Sequence[tuple[str, str]] = ()
) -> dict[str, tuple[float, int]]:
    """Type I sum of squares and degrees of freedom of each factor, then of pairs of factors.

    `values`: float64[observations]. A term gets what it explains beyond the terms before it, so
    that the sums never add to more than the total; in a balanced grid types I, II and III are the
    same. Where combinations are missing only what does not depend on the terms before counts.
    """
    terms = dict(factors)
    for one, other in interactions:
        both = zip(factors[one], factors[other], strict=True)
        terms[f"{one} × {other}"] = list(map(" × ".join, both))
    matrix = np.column_stack([design(terms), values])
    matrix -= matrix.mean(axis=0)
    products = matrix.T @ matrix  # of what the terms so far leave unexplained
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
    """Whether every combination of levels was observed, all equally often."""
    counts = Counter(zip(*factors.values(), strict=True))
    cells = np.prod([len(set(column)) for column in factors.values()])
    return len(counts) == cells and len(set(counts.values())) == 1


def f_test(square: float, freedom: int, error_square: float, error_freedom: int) -> float:
    """p of the ratio of two mean squares; NaN without freedom or without any error."""
    from scipy.special import fdtrc

    if freedom < 1 or error_freedom < 1 or error_square <= 0:
        return float("nan")
    ratio = (square / freedom) / (error_square / error_freedom)
    return float(fdtrc(freedom, error_freedom, ratio))


def design(factors: Factors) -> np.ndarray:
    """Intercept and one indicator per level: float64[rows, 1 + levels], rank deficient."""
    rows = len(next(iter(factors.values()), ()))
    parts = [np.ones((rows, 1))]
    for column in factors.values():
        place = {kind: i for i, kind in enumerate(dict.fromkeys(column))}
        codes = np.array([place[each] for each in column])
        parts.append((codes[:, None] == np.arange(len(place))).astype(float))
    return np.hstack(parts)


def _p(value: float) -> str:
    return "" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


MOST = 20
"""A diagram with more names cannot be read."""


FEWEST_COLLECTIONS = 5
"""With fewer, ranks are taken over queries."""


def rankings(report: Report, data: Measured, factors: Factors) -> list[Ranking]:
    """Objectives (others averaged), backbones, and the systems themselves where they are few."""
    found = []
    for choice in [*factors, "system"]:
        groups: dict[str, list[int]] = {}
        for place, row in enumerate(data.rows):
            name = report.name(row) if choice == "system" else factors[choice][place]
            groups.setdefault(name, []).append(place)
        if not 3 <= len(groups) <= MOST or (choice == "system" and len(factors) < 2):
            continue
        if len({len(places) for places in groups.values()}) > 1:
            continue
        weights_LR = np.zeros((len(groups), len(data.rows)))
        for level, places in enumerate(groups.values()):
            weights_LR[level, places] = 1 / len(places)
        if len(data.columns) >= FEWEST_COLLECTIONS:
            values_BL, over = (weights_LR @ data.means).T, "collections"
        else:
            values_BL = np.concatenate([weights_LR @ each for each in data.scores], axis=1).T
            over = "queries"
        found.append(rank(data.measure, choice, list(groups), values_BL, over, report.alpha))
    return found


def rank(
    measure: str, choice: str, names: Sequence[str], values_BL: np.ndarray, over: str, alpha: float
) -> Ranking:
    """Mean ranks of the levels over blocks, Friedman's p and the critical difference.

    float64[blocks, levels], higher is better. Demšar 2006 (jmlr.org/papers/v7/demsar06a.html): the
    critical difference of k levels over N blocks is q sqrt(k (k + 1) / 6 N), q the studentized
    range's quantile by the root of two: 2.569 sqrt(4 · 5 / (6 · 14)) = 1.25 at 0.05.
    """
    from scipy.special import chdtrc
    from scipy.stats import rankdata, studentized_range

    blocks, count = values_BL.shape
    # equal up to rounding is equal: averages of the same numbers differ in their last bits
    ranks_BL = rankdata(-np.round(values_BL, 12), axis=1)
    means = ranks_BL.mean(axis=0)
    # Friedman's statistic with its correction for ties
    spread = ((ranks_BL - (count + 1) / 2) ** 2).sum() / (blocks * (count - 1))
    statistic = blocks * ((means - (count + 1) / 2) ** 2).sum() / spread if spread else 0.0
    quantile = float(studentized_range.ppf(1 - alpha, count, np.inf)) / np.sqrt(2)
    critical = quantile * np.sqrt(count * (count + 1) / (6 * blocks))
    order = sorted(range(count), key=lambda level: (means[level], level))
    ordered = [float(means[level]) for level in order]
    return Ranking(
        measure=measure,
        choice=choice,
        levels=tuple(names[level] for level in order),
        mean_ranks=tuple(ordered),
        blocks=blocks,
        over=over,
        p=float(chdtrc(count - 1, statistic)),
        critical=float(critical),
        cliques=tuple(cliques(ordered, float(critical))),
        alpha=alpha,
    )


def cliques(mean_ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """The longest runs of at least two sorted ranks that lie within the critical difference.

    [1.0, 1.5, 2.5, 4.0] with 1.6: places (0, 2) and (2, 3).
    """
    found: list[tuple[int, int]] = []
    for first in range(len(mean_ranks)):
        last = max(
            place
            for place in range(first, len(mean_ranks))
            if mean_ranks[place] - mean_ranks[first] < critical or place == first
        )
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def rankings_section(found: Sequence[Ranking]) -> Section:
    """The mean ranks in words, as the critical-difference diagrams draw them."""
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
        f"{each.choice}: {each.blocks} {each.over}, Friedman p "
        f"{'< 0.001' if each.p < 0.001 else f'= {each.p:.3f}'}, critical difference "
        f"{each.critical:.2f}"
        for each in found
    )
    alpha = found[0].alpha if found else 0.0
    return Section(
        "Mean ranks",
        ("choice", "level", "mean rank", "group"),
        lines,
        "1 is best; other choices averaged. Levels of the same group are not told apart by "
        f"Nemenyi's test at {alpha:g} ({details}).",
    )


def with_effects(report: Report) -> Report:
    """The report with, for every measure: marginal means, contrasts at equal data, shares of the
    variance, wins, and mean ranks.

    They rest on the systems that have results on every collection; a measure in which fewer than
    two systems do has no sections.
    """
    sections: list[Section] = []
    ranked: list[Ranking] = []
    for data in measured(report):
        factors, shadows = factors_of(data.rows)
        if factors:
            own = rankings(report, data, factors)
            sections += _of_measure(report, data, factors, shadows, own)
            ranked += own
    return replace(report, sections=(*report.sections, *sections), rankings=tuple(ranked))


def factors_of(rows: Sequence[Row]) -> tuple[Factors, list[str]]:
    """The choices in which runs differ, name -> each row's level, and those that cannot be told
    apart from the ones before: a teacher that always goes with the same objective is its shadow.
    """
    factors: Factors = {}
    shadows = []
    for name, field in {
        "backbone": "model",
        "objective": "objective",
        "teacher": "teacher",
    }.items():
        levels = [getattr(row, field) for row in rows]
        if len(set(levels)) < 2:
            continue
        if _rank(factors | {name: levels}) == _rank(factors) + len(set(levels)) - 1:
            factors[name] = levels
        else:
            shadows.append(name)
    return factors, shadows


def marginal_weights(factors: Factors, name: str) -> tuple[list[str], np.ndarray]:
    """The levels of a factor and, per level, the weight of every row in its marginal mean.

    Least squares of an additive model: in a full grid the plain mean over the level's rows, with
    missing rows what the model expects at equal shares of the other factors' levels.
    float64[levels, rows].
    """
    levels = list(dict.fromkeys(factors[name]))
    wanted = []
    for level in levels:
        parts = [np.ones(1)]
        for other, column in factors.items():
            kinds = list(dict.fromkeys(column))
            share = np.array([float(kind == level) for kind in kinds])
            parts.append(share if other == name else np.full(len(kinds), 1 / len(kinds)))
        wanted.append(np.concatenate(parts))
    return levels, np.array(wanted) @ np.linalg.pinv(design(factors))


def _of_measure(
    report: Report,
    data: Measured,
    factors: Factors,
    shadows: Sequence[str],
    ranked: Sequence[Ranking],
) -> list[Section]:
    notes = ""
    if shadows:
        notes += f" Not told apart, since it varies only together with these: {listed(shadows)}."
    if data.left_out:
        of = len(data.rows) + data.left_out
        notes += f" {data.left_out} of {of} systems lack results and are left out."
    sections = [
        _marginal(report, data, factors, notes),
        contrasts_section(report, data),
        variance_section(data, factors, notes),
        wins_section(report, data),
        rankings_section(ranked),
    ]
    return [each._replace(title=f"{each.title}, {data.measure}") for each in sections if each.lines]


def _marginal(report: Report, data: Measured, factors: Factors, notes: str) -> Section:
    heads = interval_heads(data)
    lines: list[tuple[str, ...]] = []
    for name in factors:
        levels, weights = marginal_weights(factors, name)
        means = weights @ data.means.mean(axis=1)
        for level, mean, found in zip(
            levels, means, intervals(data, weights - weights.mean(axis=0)), strict=True
        ):
            lines.append(
                (
                    name,
                    level,
                    report.number(float(mean)),
                    signed(report, found["value"]),
                    *interval_texts(report, found, heads),
                )
            )
    return Section(
        "Marginal means",
        ("factor", "level", "mean", "effect", *(f"over {head}" for head in heads)),
        lines,
        "Effect: difference from the mean over the factor's levels, other choices equal (additive "
        f"least squares), unweighted over collections. The {CONFIDENCE:.0%} intervals tell how far "
        f"it would vary over other {listed(heads)}, the rest kept as it is." + notes,
    )


def _rank(factors: Factors) -> int:
    return int(np.linalg.matrix_rank(design(factors))) if factors else 1
