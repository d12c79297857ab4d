"""Paired tests over queries, their effect sizes, and corrections for multiple comparisons.

Shapes: P pairs of systems, Q queries; every array holds per-query values as float64, the same
queries in the same order. All tests are two-sided.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CORRECTIONS = {
    "holm": "after Holm correction",
    "bonferroni": "after Bonferroni correction",
    "bh": "after Benjamini-Hochberg correction of the false discovery rate",
    "none": "without correction",
}
"""Corrections for multiple comparisons, with the wording of captions. Holm (1979) and Bonferroni
control the family-wise error, Benjamini and Hochberg (1995) the false discovery rate."""
PERMUTATIONS_PER_CHUNK = 1000


class PairedT(NamedTuple):
    """Paired t-tests of P pairs of systems, float64[P] each."""

    difference: np.ndarray
    """Mean of the first system minus mean of the second."""
    effect: np.ndarray
    """Cohen's d of the paired differences: their mean divided by their standard deviation (n - 1).

    0 if all differences are 0, infinite if they are equal otherwise. Over several collections
    the deviation is the root of the weighted mean of their variances.
    """
    p: np.ndarray


def paired_t(differences: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> PairedT:
    """Tests whether the weighted mean of several collections' mean differences is 0, for P pairs.

    `differences` holds each collection's paired differences, float64[P, queries]; `weights` sum to
    1 and are equal unless given. One collection gives the paired t-test, two give Welch's test of
    the first against the negated second. Without any variance p is 1 if the mean is 0, else 0.

    [[1, 2, 3]] and [[1, 1, 4]]: difference 2, t = 3.4641 with 3.2 degrees of freedom, p = 0.0366.

    Raises ValueError for fewer than two queries in a collection.
    """
    from scipy.special import stdtr

    mean_P, error_P, freedom_P = stratified_means(differences, weights)
    spread_P = np.sqrt(
        sum(
            weight * values.var(-1, ddof=1)
            for weight, values in zip(_shares(differences, weights), differences, strict=True)
        )
    )
    # The range, because the deviation of equal numbers is not always 0 in floating point.
    constant_P = np.all([np.ptp(values, axis=-1) == 0 for values in differences], axis=0)
    surely_P = np.where(mean_P == 0, 0.0, np.copysign(np.inf, mean_P))
    effect_P = np.where(constant_P, surely_P, mean_P / np.where(constant_P, 1.0, spread_P))
    t_P = mean_P / np.where(constant_P, 1.0, error_P)
    p_P = np.where(constant_P, (mean_P == 0).astype(float), 2 * stdtr(freedom_P, -np.abs(t_P)))
    return PairedT(mean_P, effect_P, p_P)


def stratified_means(
    collections: Sequence[np.ndarray], weights: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weighted mean of several collections' means, its standard error, degrees of freedom.

    Each array holds one collection's values, float64[..., queries]; weights w are equal unless
    given. With sample variances s_c^2 and n_c queries the error is sqrt(sum w_c^2 s_c^2 / n_c); the
    degrees of freedom are Satterthwaite's (1946, doi:10.2307/3002019), infinite without variance.
    [1, 2, 3] and [1, 1, 4] give 2, 0.5774 and 3.2.
    """
    if any(values.shape[-1] < 2 for values in collections):
        raise ValueError("a paired t-test needs two queries or more in each collection")
    shares = _shares(collections, weights)
    mean: np.ndarray = sum(
        share * values.mean(-1) for share, values in zip(shares, collections, strict=True)
    )
    error, freedom = satterthwaite(
        [values.var(-1, ddof=1) / values.shape[-1] for values in collections],
        [values.shape[-1] - 1 for values in collections],
        shares,
    )
    return mean, error, freedom


def satterthwaite(
    variances: Sequence[np.ndarray], freedoms: Sequence[int], weights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Standard error and degrees of freedom of a weighted sum of means.

    `variances` are those of the means. Rounding may have made a variance of 0 negative.
    """
    parts = [w**2 * np.maximum(v, 0) for w, v in zip(weights, variances, strict=True)]
    total = np.sum(parts, axis=0)
    below = np.sum([part**2 / n for part, n in zip(parts, freedoms, strict=True)], axis=0)
    return np.sqrt(total), np.where(below > 0, total**2 / np.where(below > 0, below, 1), np.inf)


def paired_randomization(
    differences: Sequence[np.ndarray],
    weights: Sequence[float] | None = None,
    seed: int = 0,
    permutations: int = 100_000,
) -> np.ndarray:
    """p-values of paired randomization tests, float64[P].

    p = (1 + n) / (1 + permutations): n counts the random swaps of the two systems' values, query by
    query, whose mean difference is at least as far from 0 as the observed one. `differences` and
    `weights` as in `paired_t`; over several collections the mean is their weighted mean. The same
    swaps are used for every pair; p is never 0 (Phipson and Smyth 2010,
    doi:10.2202/1544-6115.1585).
    """
    scaled_PQ = np.concatenate(
        [
            share / values.shape[-1] * values
            for share, values in zip(_shares(differences, weights), differences, strict=True)
        ],
        axis=-1,
    )
    observed_P = np.abs(scaled_PQ.sum(-1))
    # Sums in another order differ in their last bits; equal differences must still count.
    threshold_P = observed_P - 1e-12 * (1 + observed_P)
    generator = np.random.default_rng(seed)
    extreme_P = np.zeros(observed_P.shape, dtype=np.int64)
    for start in range(0, permutations, PERMUTATIONS_PER_CHUNK):
        swaps = min(PERMUTATIONS_PER_CHUNK, permutations - start), scaled_PQ.shape[-1]
        signs_RQ = generator.choice(np.array([-1.0, 1.0]), size=swaps)
        extreme_P += (np.abs(scaled_PQ @ signs_RQ.T) >= threshold_P[:, None]).sum(-1)
    return (1 + extreme_P) / (1 + permutations)


def corrected(p_values: np.ndarray, correction: str) -> np.ndarray:
    """p-values after a correction over all of them, float64[P]; see `CORRECTIONS`.

    (0.01, 0.04, 0.03) gives (0.03, 0.06, 0.06) under holm and (0.03, 0.04, 0.04) under bh.
    """
    # not statsmodels' `multipletests`, whose import takes as long as a small report
    count, order = len(p_values), np.argsort(p_values)
    rising = p_values[order]
    if correction == "holm":
        rising = np.maximum.accumulate(rising * np.arange(count, 0, -1))
    elif correction == "bonferroni":
        rising = rising * count
    elif correction == "bh":
        rising = np.minimum.accumulate((rising / (np.arange(1, count + 1) / count))[::-1])[::-1]
    found = np.empty(count)
    found[order] = np.minimum(rising, 1.0)
    return found


def _shares(collections: Sequence[np.ndarray], weights: Sequence[float] | None) -> Sequence[float]:
    return weights if weights is not None else [1 / len(collections)] * len(collections)
