import numpy as np
import pytest
from scipy import stats

from xsweep.evaluator.significance import corrected, paired_randomization, paired_t


def _scores(systems: int, queries: int = 40, seed: int = 4) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.random((systems, queries)) + np.arange(systems)[:, None] * 0.1


def test_paired_t_tests_equal_scipys_for_every_pair() -> None:
    systems, baselines = _scores(5), _scores(5, seed=9)
    ours = paired_t([systems - baselines]).p
    assert ours == pytest.approx(stats.ttest_rel(systems, baselines, axis=1).pvalue, rel=1e-9)


def test_a_paired_t_test_computed_by_hand() -> None:
    # (0.2, 0.4, 0.9) against (0.1, 0.5, 0.5): t = 0.9177
    (p,) = paired_t([np.array([[0.1, -0.1, 0.4]])]).p
    assert p == pytest.approx(0.4556, abs=1e-4)


def test_equal_systems_do_not_differ_and_constant_differences_surely_do() -> None:
    found = paired_t([np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])])
    assert found.p.tolist() == [1.0, 0.0]
    assert found.effect.tolist() == [0.0, np.inf]


def test_the_effect_is_mean_by_deviation_of_the_differences() -> None:
    assert paired_t([np.array([[1.0, 2.0, 3.0]])]).effect == pytest.approx(2.0)


def test_one_query_is_no_sample() -> None:
    with pytest.raises(ValueError, match="two queries"):
        paired_t([np.array([[-1.0]])])


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        # the sorted values times 4, 3, 2, 1, then the running maximum
        ("holm", [0.04, 0.09, 0.09, 0.5]),
        ("bonferroni", [0.04, 0.16, 0.12, 1.0]),
        # times 4/1, 4/2, 4/3, 4/4, then the running minimum from the largest
        ("bh", [0.04, 0.16 / 3, 0.16 / 3, 0.5]),
        ("none", [0.01, 0.04, 0.03, 0.5]),
    ],
)
def test_corrections_computed_by_hand(correction: str, expected: list[float]) -> None:
    assert corrected(np.array([0.01, 0.04, 0.03, 0.5]), correction) == pytest.approx(expected)


def test_randomization_test_equals_the_exact_one_over_all_swaps() -> None:
    a, b = _scores(2, queries=8)
    exact = stats.permutation_test(
        (a - b,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    (ours,) = paired_randomization([(a - b)[None]], seed=1, permutations=50_000)
    assert ours == pytest.approx(exact, abs=0.01)


def test_randomization_test_repeats_under_its_seed_and_is_never_zero() -> None:
    a, b = _scores(2)

    def p(differences: np.ndarray, seed: int = 0, permutations: int = 999) -> float:
        return float(paired_randomization([differences[None]], None, seed, permutations)[0])

    first = p(a - b, 1, 2_500)
    assert first == p(a - b, 1, 2_500)
    assert first != p(a - b, 2, 2_500)
    assert p(a + 9 - b) == 1 / 1000
    assert p(a - a) == 1.0


def test_randomization_tests_of_many_pairs_equal_single_ones() -> None:
    differences = _scores(3) - _scores(3, seed=9)
    together = paired_randomization([differences], seed=5, permutations=3_000)
    alone = paired_randomization([differences[2:]], seed=5, permutations=3_000)
    assert together[2] == alone[0]
