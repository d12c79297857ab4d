"""Mean ranks of levels over blocks and their critical difference (Friedman, Nemenyi)."""

from collections.abc import Sequence

import numpy as np

from xsweep.orchestrator.formatting import p_value
from xsweep.orchestrator.report.report import Ranking, Section


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
