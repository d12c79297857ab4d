"""The share of the variance that each choice explains, collections and seeds being random."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from orchestrator.report.measured import Factors, Measured
from orchestrator.report.report import Section


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
