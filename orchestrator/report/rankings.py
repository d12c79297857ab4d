"""Mean ranks over collections with the critical difference: Friedman's test, then Nemenyi's."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.report.measured import Factors, Measured
from orchestrator.report.report import Report, Section

MOST = 20
"""A diagram with more names cannot be read."""
FEWEST_COLLECTIONS = 5
"""With fewer, ranks are taken over queries."""


class Ranking(NamedTuple):
    """Levels of one choice, the best first, with what tells them apart."""

    measure: str
    choice: str
    levels: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    """1 is best; ties share their average rank."""
    blocks: int
    """Collections, or queries, over which the ranks are averaged."""
    over: str
    p: float
    """Of Friedman's test that all levels rank alike."""
    critical: float
    """Levels whose mean ranks differ by less are not told apart (Nemenyi)."""
    cliques: tuple[tuple[int, int], ...]
    """First and last place of every longest run of levels that are not told apart."""
    alpha: float


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
