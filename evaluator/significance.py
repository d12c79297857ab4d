"""Paired tests over queries, corrections for many comparisons, effect sizes, intervals.

Shapes: S systems, B baselines, Q queries; every array holds per-query values as float64, the same
queries in the same order. All tests are two-sided.
"""

import numpy as np
from numpy.typing import ArrayLike

PERMUTATIONS_PER_CHUNK = 1000


def paired_t_test(a: ArrayLike, b: ArrayLike) -> float:
    """p of Student's paired t-test for one system against another, [Q] each.

    (0.2, 0.4, 0.9) against (0.1, 0.5, 0.5) gives t = 0.9177, p = 0.4556.
    """
    return float(paired_t_tests(np.atleast_2d(a), np.atleast_2d(b))[0, 0])


def paired_t_tests(systems_SQ: ArrayLike, baselines_BQ: ArrayLike) -> np.ndarray:
    """p[S, B] of the paired t-test of every system against every baseline.

    Differences that are all the same have no variance: p is 1 where they are 0, else 0.
    Raises ValueError for fewer than two queries.
    """
    from scipy.special import stdtr

    differences_SBQ = _differences(systems_SQ, baselines_BQ)
    queries = differences_SBQ.shape[-1]
    if queries < 2:
        raise ValueError(f"a paired t-test needs two queries or more, found {queries}")
    means = differences_SBQ.mean(-1)
    errors = differences_SBQ.std(-1, ddof=1) / np.sqrt(queries)
    constant = np.ptp(differences_SBQ, axis=-1) == 0
    t = means / np.where(constant, 1.0, errors)
    return np.where(constant, (means == 0).astype(float), 2 * stdtr(queries - 1, -np.abs(t)))


def randomization_test(
    a: ArrayLike, b: ArrayLike, seed: int = 0, permutations: int = 100_000
) -> float:
    """p of Fisher's paired randomization test on the mean difference, [Q] each."""
    tests = randomization_tests(np.atleast_2d(a), np.atleast_2d(b), seed, permutations)
    return float(tests[0, 0])


def randomization_tests(
    systems_SQ: ArrayLike, baselines_BQ: ArrayLike, seed: int = 0, permutations: int = 100_000
) -> np.ndarray:
    """p[S, B] = (1 + n) / (1 + permutations), n counting the random swaps of the two systems'
    values, query by query, whose mean difference is at least as far from 0 as the one seen.

    The same swaps serve every pair; p is never 0 (Phipson and Smyth 2010,
    doi:10.2202/1544-6115.1585).
    """
    differences_SBQ = _differences(systems_SQ, baselines_BQ)
    seen_SB = np.abs(differences_SBQ.sum(-1))
    # Sums in another order differ in their last bits: equality must survive that.
    threshold_SB = seen_SB - 1e-12 * (1 + seen_SB)
    generator = np.random.default_rng(seed)
    extreme_SB = np.zeros(seen_SB.shape, dtype=np.int64)
    for start in range(0, permutations, PERMUTATIONS_PER_CHUNK):
        swaps = min(PERMUTATIONS_PER_CHUNK, permutations - start), differences_SBQ.shape[-1]
        signs_PQ = generator.choice(np.array([-1.0, 1.0]), size=swaps)
        extreme_SB += (np.abs(differences_SBQ @ signs_PQ.T) >= threshold_SB[..., None]).sum(-1)
    return (1 + extreme_SB) / (1 + permutations)


def bootstrap_interval(
    values: ArrayLike, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean over queries, [Q].

    Give it one system's values, or the differences of two.
    """
    sample = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            sample[generator.integers(len(sample), size=(rows, len(sample)))].mean(-1)
            for rows in _chunks(resamples)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def cohens_d(a: ArrayLike, b: ArrayLike) -> float:
    """The paired effect size: mean of the differences by their standard deviation (n - 1).

    0 where there is no difference at all, infinite where all differences are the same.
    """
    difference = np.subtract(a, b, dtype=np.float64)
    mean, spread = difference.mean(), difference.std(ddof=1)
    if np.ptp(difference) == 0:
        return float(np.copysign(np.inf, mean)) if mean else 0.0
    return float(mean / spread)


def bonferroni(p_values: ArrayLike) -> np.ndarray:
    """p times the number of comparisons, at most 1."""
    p = np.asarray(p_values, dtype=np.float64)
    return np.minimum(p * p.size, 1)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's step-down correction: family-wise error, never weaker than Bonferroni's.

    (0.01, 0.04, 0.03) gives (0.03, 0.06, 0.06). Source: Holm 1979, jstor.org/stable/4615733.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, axis=None)
    stepped = p.flat[order] * np.arange(p.size, 0, -1)
    return _restored(np.maximum.accumulate(stepped), order, p.shape)


def benjamini_hochberg(p_values: ArrayLike) -> np.ndarray:
    """Benjamini and Hochberg's step-up correction: false discovery rate.

    (0.01, 0.04, 0.03) gives (0.03, 0.04, 0.04). Source: doi:10.1111/j.2517-6161.1995.tb02031.x.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, axis=None)
    stepped = p.flat[order] * p.size / np.arange(1, p.size + 1)
    return _restored(np.minimum.accumulate(stepped[::-1])[::-1], order, p.shape)


def _restored(stepped: np.ndarray, order: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.reshape(shape)


def _differences(systems_SQ: ArrayLike, baselines_BQ: ArrayLike) -> np.ndarray:
    systems = np.asarray(systems_SQ, dtype=np.float64)
    return systems[:, None] - np.asarray(baselines_BQ, dtype=np.float64)


def _chunks(total: int) -> list[int]:
    whole, rest = divmod(total, PERMUTATIONS_PER_CHUNK)
    return [PERMUTATIONS_PER_CHUNK] * whole + ([rest] if rest else [])
