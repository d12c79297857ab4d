"""What the choice of objective, backbone and teacher is worth: marginal means, shares, wins."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, groupby

import numpy as np

from orchestrator.report.caption import CORRECTIONS as CORRECTION_NAMES
from orchestrator.report.caption import listed
from orchestrator.report.comparisons import (
    CORRECTIONS,
    stratified_mean,
    stratified_t_test,
    subtract,
    testable,
)
from orchestrator.report.report import Report, Section
from orchestrator.report.table import Column, Row

CONFIDENCE = 0.95

Factors = dict[str, list[str]]
"""What varies among systems: name of the choice -> the level of every row."""


def effect_sections(report: Report) -> tuple[Section, ...]:
    """For every measure: marginal means, shares of the variance, and wins of the objectives.

    They rest on the systems that have results in every column; a measure in which fewer than two
    systems do has no sections.
    """
    by_measure: dict[str, list[Column]] = {}
    for column in report.table.columns:
        by_measure.setdefault(column.measure, []).append(column)
    return tuple(
        section for columns in by_measure.values() for section in _of_measure(report, columns)
    )


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
    return levels, np.array(wanted) @ np.linalg.pinv(_design(factors))


def variance_shares(
    factors: Factors, values: np.ndarray, interaction: Sequence[str] = ()
) -> dict[str, float]:
    """The share of the total sum of squares that each factor explains (type II), and the rest.

    `values`: float64[observations]. The factors named in `interaction` get one more share for what
    they explain together beyond their sum.
    """
    total = float(((values - values.mean()) ** 2).sum())
    additive = _residual(factors, values)
    shares = {
        name: _residual({n: f for n, f in factors.items() if n != name}, values) - additive
        for name in factors
    }
    rest = additive
    if interaction:
        joint = list(map(" ".join, zip(*(factors[name] for name in interaction), strict=True)))
        rest = _residual(factors | {"together": joint}, values)
        shares[" × ".join(interaction)] = additive - rest
    shares["rest"] = rest
    return {name: share / total if total else 0.0 for name, share in shares.items()}


def _of_measure(report: Report, columns: Sequence[Column]) -> list[Section]:
    entries = report.table.entries
    runs = [row for row in report.table.rows if row.system == "run"]
    rows = [
        row
        for row in runs
        if all((row, column) in entries and testable(entries[row, column]) for column in columns)
    ]
    factors, shadows = factors_of(rows)
    if not factors:
        return []
    notes = ""
    if shadows:
        notes += f" Not told apart, since it varies only together with these: {listed(shadows)}."
    if len(rows) < len(runs):
        notes += f" {len(runs) - len(rows)} of {len(runs)} systems lack results and are left out."
    sections = [
        _marginal(report, rows, columns, factors, notes),
        _shares(report, rows, columns, factors, notes),
    ]
    if len({row.objective for row in rows}) > 1:
        sections.append(_wins(report, rows, columns))
    return [each._replace(title=f"{each.title}, {columns[0].measure}") for each in sections]


def _marginal(
    report: Report,
    rows: Sequence[Row],
    columns: Sequence[Column],
    factors: Factors,
    notes: str,
) -> Section:
    from scipy.special import stdtrit

    # per column and collection: scores[rows, queries], averaged over seeds
    scores = [
        np.stack(parts)
        for column in columns
        for parts in zip(
            *(report.table.entries[row, column].per_query for row in rows), strict=True
        )
    ]
    lines: list[tuple[str, ...]] = []
    for name in factors:
        levels, weights = marginal_weights(factors, name)
        for level, weight, effect in zip(
            levels, weights, weights - weights.mean(axis=0), strict=True
        ):
            mean, _, _ = stratified_mean([weight @ each for each in scores])
            difference, error, freedom = stratified_mean([effect @ each for each in scores])
            reach = error * float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) if error else 0.0
            lines.append(
                (
                    name,
                    level,
                    report.number(mean),
                    _signed(report, difference),
                    " to ".join(_signed(report, difference + each) for each in (-reach, reach)),
                )
            )
    return Section(
        "Marginal means",
        ("factor", "level", "mean", "effect", f"{CONFIDENCE:.0%} interval"),
        lines,
        "Effect: difference from the mean over the factor's levels, other choices equal (additive "
        "least squares); the interval is over queries, seeds are averaged." + notes,
    )


def _shares(
    report: Report,
    rows: Sequence[Row],
    columns: Sequence[Column],
    factors: Factors,
    notes: str,
) -> Section:
    observed = [
        (place, column.place, mean)
        for place, row in enumerate(rows)
        for column in columns
        for mean in report.table.entries[row, column].means.values()
    ]
    repeated = {
        name: [levels[place] for place, _, _ in observed] for name, levels in factors.items()
    }
    if len(columns) > 1:
        repeated[report.by] = [place for _, place, _ in observed]
    both = ("backbone", "objective")
    shares = variance_shares(
        repeated,
        np.array([mean for *_, mean in observed]),
        both if all(name in repeated for name in both) else (),
    )
    return Section(
        "Share of the variance",
        ("source", "share"),
        [(name, f"{share:.1%}") for name, share in shares.items()],
        "Type II sums of squares over the means of all seeds; the rest is seeds and what is not "
        "listed." + notes,
    )


def _wins(report: Report, rows: Sequence[Row], columns: Sequence[Column]) -> Section:
    """How often one objective's mean is above another's, backbone and column being equal."""
    kinds = list(dict.fromkeys(_kind(report, row) for row in rows))
    duels: list[tuple[Row, Row, float, float]] = []
    for column in columns:
        for _, same_backbone in groupby(rows, key=lambda row: row.model):
            group = list(same_backbone)
            entries = [report.table.entries[row, column] for row in group]
            for i, j in combinations(range(len(group)), 2):
                duels.append(
                    (
                        group[i],
                        group[j],
                        entries[i].mean - entries[j].mean,
                        stratified_t_test(subtract(entries[i].per_query, entries[j].per_query)),
                    )
                )
    corrected = CORRECTIONS[report.correction](np.array([p for *_, p in duels]))
    held: Counter[tuple[str, str]] = Counter()
    won: Counter[tuple[str, str]] = Counter()
    clearly: Counter[tuple[str, str]] = Counter()
    for (one, other, difference, _), p in zip(duels, corrected, strict=True):
        pair = _kind(report, one), _kind(report, other)
        for winner, gain in ((pair, difference), (pair[::-1], -difference)):
            held[winner] += 1
            won[winner] += gain > 0
            clearly[winner] += gain > 0 and p < report.alpha
    return Section(
        "Wins of the row over the column",
        ("", *kinds),
        [
            (
                a,
                *(
                    f"{won[a, b]}/{held[a, b]} ({clearly[a, b]})" if held[a, b] else ""
                    for b in kinds
                ),
            )
            for a in kinds
        ],
        f"n/m (k): the better mean in n of m pairs of the same backbone and {report.by}, k of them "
        f"significantly (paired t-test, p < {report.alpha:g} "
        f"{CORRECTION_NAMES[report.correction]} over {len(duels)} pairs).",
    )


def _kind(report: Report, row: Row) -> str:
    return f"{row.objective} ({row.teacher})" if report.teachers_shown else row.objective


def _design(factors: Factors) -> np.ndarray:
    """Intercept and one indicator per level: float64[rows, 1 + levels], rank deficient."""
    rows = len(next(iter(factors.values()), ()))
    parts = [np.ones((rows, 1))]
    for column in factors.values():
        kinds = list(dict.fromkeys(column))
        parts.append(np.array([[float(each == kind) for kind in kinds] for each in column]))
    return np.hstack(parts)


def _rank(factors: Factors) -> int:
    return int(np.linalg.matrix_rank(_design(factors))) if factors else 1


def _residual(factors: Factors, values: np.ndarray) -> float:
    """The residual sum of squares of the additive model of the factors."""
    if not factors:
        return float(((values - values.mean()) ** 2).sum())
    design = _design(factors)
    return float(((values - design @ np.linalg.lstsq(design, values, rcond=None)[0]) ** 2).sum())


def _signed(report: Report, value: float) -> str:
    return f"{'−' if value < 0 else '+'}{report.number(abs(value))}"
