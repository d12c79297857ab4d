import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from evaluator import significance


def _scores(systems: int, queries: int = 40, seed: int = 4) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.random((systems, queries)) + np.arange(systems)[:, None] * 0.1


def test_paired_t_tests_equal_scipys_for_every_pair() -> None:
    systems, baselines = _scores(5), _scores(3, seed=9)
    ours = significance.paired_t_tests(systems, baselines)
    for row, system in enumerate(systems):
        for column, baseline in enumerate(baselines):
            expected = stats.ttest_rel(system, baseline).pvalue
            assert ours[row, column] == pytest.approx(expected, rel=1e-9)
    assert significance.paired_t_test(systems[0], baselines[1]) == ours[0, 1]


def test_the_worked_t_test_of_the_docstring() -> None:
    p = significance.paired_t_test([0.2, 0.4, 0.9], [0.1, 0.5, 0.5])
    assert p == pytest.approx(0.4556, abs=1e-4)


def test_equal_systems_do_not_differ_and_constant_differences_surely_do() -> None:
    scores = _scores(1)[0]
    assert significance.paired_t_test(scores, scores) == 1.0
    assert significance.paired_t_test([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]) == 0.0
    assert significance.cohens_d(scores, scores) == 0.0
    assert significance.cohens_d([2.0, 3.0], [1.0, 2.0]) == np.inf


def test_one_query_is_no_sample() -> None:
    with pytest.raises(ValueError, match="two queries"):
        significance.paired_t_test([1.0], [2.0])


@pytest.mark.parametrize(
    "p_values",
    [[0.3], [0.01, 0.04, 0.03], [0.02] * 5, [0.0, 1.0, 0.5, 0.5], [*np.linspace(1e-4, 0.2, 40)]],
)
def test_corrections_equal_statsmodels(p_values: list[float]) -> None:
    for ours, theirs in [
        (significance.holm, "holm"),
        (significance.bonferroni, "bonferroni"),
        (significance.benjamini_hochberg, "fdr_bh"),
    ]:
        expected = multipletests(p_values, method=theirs)[1]
        np.testing.assert_allclose(ours(p_values), expected, atol=1e-12)


def test_corrections_keep_the_shape_and_take_it_as_one_family() -> None:
    p = np.array([[0.01, 0.04], [0.03, 0.5]])
    assert significance.holm(p).tolist() == [[0.04, 0.09], [0.09, 0.5]]
    assert significance.holm([]).shape == (0,)


def test_randomization_test_equals_the_exact_one_over_all_swaps() -> None:
    a, b = _scores(2, queries=8)
    exact = stats.permutation_test(
        (a - b,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    ours = significance.randomization_test(a, b, seed=1, permutations=50_000)
    assert ours == pytest.approx(exact, abs=0.01)


def test_randomization_test_repeats_under_its_seed_and_is_never_zero() -> None:
    a, b = _scores(2)
    first = significance.randomization_test(a, b, seed=1, permutations=2_500)
    assert first == significance.randomization_test(a, b, seed=1, permutations=2_500)
    assert first != significance.randomization_test(a, b, seed=2, permutations=2_500)
    assert significance.randomization_test(a + 9, b, permutations=999) == 1 / 1000
    assert significance.randomization_test(a, a, permutations=999) == 1.0


def test_randomization_tests_of_many_systems_equal_single_ones() -> None:
    systems, baselines = _scores(3), _scores(2, seed=9)
    together = significance.randomization_tests(systems, baselines, seed=5, permutations=3_000)
    alone = significance.randomization_test(systems[2], baselines[1], seed=5, permutations=3_000)
    assert together[2, 1] == alone


def test_bootstrap_interval_is_near_the_t_interval_of_a_large_sample() -> None:
    sample = np.random.default_rng(2).normal(0.3, 0.2, 500)
    low, high = significance.bootstrap_interval(sample, seed=1)
    expected = stats.t.interval(0.95, 499, sample.mean(), stats.sem(sample))
    assert (low, high) == pytest.approx(expected, abs=0.002)
    assert (low, high) == significance.bootstrap_interval(sample, seed=1)


def test_cohens_d_is_mean_by_deviation_of_the_differences() -> None:
    assert significance.cohens_d([1.0, 2.0, 4.0], [0.0, 0.0, 1.0]) == pytest.approx(2.0)
