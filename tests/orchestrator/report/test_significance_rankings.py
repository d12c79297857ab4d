import numpy as np
import pytest
from reports import make_report
from scipy import stats

from xsweep.orchestrator.report.effects import complete_runs, rankings
from xsweep.orchestrator.report.significance import cliques, rank, rankings_section


def ranked(values, alpha=0.05):
    names = [f"s{i}" for i in range(values.shape[1])]
    return rank("AP", "system", names, values, "collections", alpha)


def test_mean_ranks_computed_by_hand_with_a_tie():
    # ranks per block: 1 2 3; 1.5 1.5 3; 2 1 3
    found = ranked(np.array([[0.9, 0.8, 0.1], [0.5, 0.5, 0.2], [0.3, 0.7, 0.1]]))
    assert found.levels == ("s0", "s1", "s2")
    assert found.mean_ranks == pytest.approx((1.5, 1.5, 3.0))


@pytest.mark.parametrize("ties", [False, True])
def test_p_is_that_of_scipys_friedman_test(ties):
    values = np.random.default_rng(1).uniform(size=(14, 4)) + np.array([0.0, 0.1, 0.3, 0.4])
    if ties:
        values = values.round(1)
    assert ranked(values).p == pytest.approx(stats.friedmanchisquare(*values.T).pvalue)


@pytest.mark.parametrize(
    ("levels", "quantile"), [(3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (10, 3.164)]
)
def test_the_critical_difference_has_the_published_quantiles(levels, quantile):
    """Table 5a of Demšar 2006, for 0.05."""
    found = ranked(np.random.default_rng(0).uniform(size=(14, levels)))
    expected = quantile * np.sqrt(levels * (levels + 1) / (6 * 14))
    assert found.critical == pytest.approx(expected, abs=2e-3)


def test_cliques_are_the_maximal_runs_within_the_critical_difference():
    assert cliques([1.0, 1.5, 2.5, 4.0], 1.6) == [(0, 2), (2, 3)]
    assert cliques([1.0, 2.0, 3.0], 0.5) == []
    assert cliques([1.0, 1.1, 1.2], 2.0) == [(0, 2)]


def test_values_equal_up_to_rounding_tie():
    values = np.tile([0.1 + 0.2, 0.3, 0.0], (5, 1))
    assert ranked(values).mean_ranks == pytest.approx((1.5, 1.5, 3.0))


@pytest.fixture(scope="module")
def report(make_cell):
    generator = np.random.default_rng(2)
    cells = []
    for backbone in ("L3", "L6"):
        for gain, objective in enumerate("abc"):
            for collection in "pqrstu":
                scores = gain / 4 + generator.uniform(0, 0.1, 3)
                labels = {"backbone": backbone, "objective": objective, "collection": collection}
                cells.append(make_cell(len(cells), AP=scores, **labels))
    return make_report(cells, measures=["AP"], baselines=[])


def test_other_choices_are_averaged_and_two_levels_need_no_diagram(report):
    (data,) = complete_runs(report)
    objectives, systems = rankings(report, data)
    assert (objectives.choice, systems.choice) == ("objective", "system")
    assert objectives.levels == ("c", "b", "a")
    assert objectives.mean_ranks == (1.0, 2.0, 3.0)
    assert (objectives.blocks, objectives.over) == (6, "collections")
    # 2.343 sqrt(3 · 4 / (6 · 6)) = 1.353: the ends differ significantly, neighbours do not
    assert objectives.critical == pytest.approx(1.353, abs=2e-3)
    lines = rankings_section([objectives, systems], 0.05).lines
    assert lines[:3] == [
        ("objective", "c", "1.00", "A"),
        ("objective", "b", "2.00", "A B"),
        ("objective", "a", "3.00", "B"),
    ]


def test_with_few_collections_ranks_are_over_queries(small_sweep):
    report = make_report(small_sweep, where={"objective": ["bce", "infonce"]})
    (data,) = complete_runs(report)
    (systems,) = rankings(report, data)
    assert (systems.blocks, systems.over) == (60, "queries")
