"""What the choice of objective, backbone and teacher is worth, averaged over the others."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from orchestrator.report.caption import listed
from orchestrator.report.contrasts import contrasts_section, wins_section
from orchestrator.report.measured import (
    CONFIDENCE,
    Factors,
    Measured,
    interval_heads,
    interval_texts,
    intervals,
    measured,
    signed,
)
from orchestrator.report.rankings import Ranking, rankings, rankings_section
from orchestrator.report.report import Report, Section
from orchestrator.report.table import Row
from orchestrator.report.variance import design, variance_section


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
