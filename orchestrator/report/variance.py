"""The share of the variance that each choice explains, collections and seeds being random."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from orchestrator.report.measured import Factors, Measured
from orchestrator.report.report import Section

MAIN = ("backbone", "objective", "teacher")


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
        squares["seeds"] = variance * seeds_freedom * len(data.columns)
    total = float(((values - values.mean()) ** 2).sum())
    squares["rest"] = max(total - sum(squares.values()), 0.0)
    apart = total - squares.get("collection", 0.0)
    lines = []
    for name, square in squares.items():
        line = [name, f"{square / total:.1%}" if total else "–"]
        if several:
            own = name != "collection" and apart
            line.append(f"{square / apart:.1%}" if own else "")
        if seeds_freedom:
            line.append(_p_over_seeds(name, squares, factors, seeds_freedom))
        if several:
            line.append(_p_over_collections(name, squares, factors, len(data.columns)))
        lines.append(tuple(line))
    heads = ["source", "share"]
    heads += ["of what is not collection"] if several else []
    heads += ["p, seeds random"] if seeds_freedom else []
    heads += ["p, collections random"] if several else []
    note = "Type II sums of squares over the means of all seeds; the rest is what is not listed."
    if seeds_freedom:
        note += " Seeds: variation of a system's mean among its seeds."
    if several or seeds_freedom:
        against = ["the variation among seeds"] if seeds_freedom else []
        against += ["that of the same choice among collections"] if several else []
        note += f" p: F test against {' or '.join(against)}."
    return Section("Share of the variance", tuple(heads), lines, note + notes)


def sums_of_squares(
    factors: Factors, values: np.ndarray, interactions: Sequence[tuple[str, str]] = ()
) -> dict[str, float]:
    """Type II sums of squares of each factor, and of pairs of factors beyond the additive model.

    `values`: float64[observations]. In a balanced grid the sums and the rest add up to the total.
    """
    if balanced(factors):
        squares = _balanced_squares(factors, values, interactions)
    else:
        squares = _least_squares(factors, values, interactions)
    return {name: max(square, 0.0) for name, square in squares.items()}


def balanced(factors: Factors) -> bool:
    """Whether every combination of levels was observed, all equally often."""
    counts = Counter(zip(*factors.values(), strict=True))
    cells = np.prod([len(set(column)) for column in factors.values()])
    return len(counts) == cells and len(set(counts.values())) == 1


def _balanced_squares(
    factors: Factors, values: np.ndarray, interactions: Sequence[tuple[str, str]]
) -> dict[str, float]:
    """By means of groups, which in a balanced grid is least squares."""
    centred = values - values.mean()
    codes = {name: np.unique(column, return_inverse=True)[1] for name, column in factors.items()}

    def means(code: np.ndarray) -> np.ndarray:
        """Each observation's group mean."""
        return (np.bincount(code, centred) / np.bincount(code))[code]

    single = {name: means(code) for name, code in codes.items()}
    squares = {name: float((each**2).sum()) for name, each in single.items()}
    for one, other in interactions:
        both = codes[one] * (codes[other].max() + 1) + codes[other]
        beyond = means(both) - single[one] - single[other]
        squares[f"{one} × {other}"] = float((beyond**2).sum())
    return squares


def _least_squares(
    factors: Factors, values: np.ndarray, interactions: Sequence[tuple[str, str]]
) -> dict[str, float]:
    additive = _residual(factors, values)
    squares = {
        name: _residual({n: f for n, f in factors.items() if n != name}, values) - additive
        for name in factors
    }
    for one, other in interactions:
        both = list(map(" × ".join, zip(factors[one], factors[other], strict=True)))
        squares[f"{one} × {other}"] = additive - _residual(factors | {"both": both}, values)
    return squares


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


def _p_over_seeds(name: str, squares: dict[str, float], factors: Factors, freedom: int) -> str:
    own = _freedom(name, factors)
    if own is None:
        return ""
    return _p(f_test(squares[name], own, squares["seeds"], freedom))


def _p_over_collections(
    name: str, squares: dict[str, float], factors: Factors, collections: int
) -> str:
    own, error = _freedom(name, factors), squares.get(f"{name} × collection")
    if own is None or error is None:
        return ""
    return _p(f_test(squares[name], own, error, own * (collections - 1)))


def _freedom(name: str, factors: Factors) -> int | None:
    """Degrees of freedom of a choice or of two together; None for what is no choice."""
    parts = name.split(" × ")
    if not all(part in factors for part in parts):
        return None
    return int(np.prod([len(set(factors[part])) - 1 for part in parts]))


def _p(value: float) -> str:
    return "" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _residual(factors: Factors, values: np.ndarray) -> float:
    """The residual sum of squares of the additive model of the factors."""
    centred = values - values.mean()
    if not factors:
        return float((centred**2).sum())
    matrix = design(factors)
    # normal equations: indicators are few and exact, observations are thousands
    fitted = matrix @ (np.linalg.pinv(matrix.T @ matrix, hermitian=True) @ (matrix.T @ centred))
    return float(((centred - fitted) ** 2).sum())
