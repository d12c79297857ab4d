import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from xsweep.errors import ConfigError
from xsweep.evaluator.significance import paired_t
from xsweep.orchestrator.report.report import ReportOptions
from xsweep.orchestrator.report.significance import compare_rows, find_baselines
from xsweep.orchestrator.report.table import build_table

MEASURES = ["nDCG@10", "RR@10"]


@pytest.fixture(scope="module")
def table(small_sweep):
    return build_table(small_sweep, MEASURES)


@pytest.fixture(scope="module")
def baselines(table):
    return find_baselines(table, ["first_stage"])


def compare(table, baselines, **options):
    return compare_rows(table, baselines, ReportOptions(**options))


def stratified_t_test(differences):
    return float(paired_t([np.atleast_2d(each) for each in differences]).p[0])


def by_name(comparisons, name, measure="nDCG@10"):
    return next(c for c in comparisons if c.row.name == name and c.column.measure == measure)


def scores(cells, measure="nDCG@10", **labels):
    return [
        cell.scores[measure]
        for cell in cells
        if cell.means and all(cell.labels.get(key) == value for key, value in labels.items())
    ]


def test_tests_are_paired_over_queries_after_averaging_over_seeds(table, baselines, small_sweep):
    found = by_name(compare(table, baselines), "L6 infonce (lists)")
    ours = np.mean(scores(small_sweep, backbone="L6", objective="infonce"), axis=0)
    (theirs,) = scores(small_sweep, system="first_stage")
    paired = stats.ttest_rel(ours, theirs)
    assert found.p == pytest.approx(paired.pvalue, rel=1e-9)
    assert found.queries == 60
    assert found.effect == pytest.approx(paired.statistic / np.sqrt(60), rel=1e-9)
    # an error known from a published study: the same numbers as two independent samples
    unpaired = stats.ttest_ind(ours, theirs, equal_var=False)
    assert found.p < unpaired.pvalue / 10


@pytest.mark.parametrize(
    ("correction", "peer"), [("holm", "holm"), ("bonferroni", "bonferroni"), ("bh", "fdr_bh")]
)
def test_the_correction_takes_all_columns_and_baselines_as_one_family(table, correction, peer):
    several = find_baselines(table, ["first_stage", "minilm"])
    found = compare(table, several, correction=correction)
    # 5 systems with results (one backbone's adr_mse has none), 2 measures, 2 baselines
    assert len(found) == 5 * 2 * 2
    _, expected, _, _ = multipletests([each.p for each in found], method=peer)
    assert [each.p_corrected for each in found] == pytest.approx(expected)


def test_better_and_worse_systems_are_found(table, baselines):
    found = compare(table, baselines)
    assert by_name(found, "L6 infonce (lists)").verdict == "better"
    assert by_name(found, "L3 bce (pairs)").verdict == "worse"
    assert by_name(found, "minilm (teacher)").verdict == "same"
    for each in found:
        assert (each.p_corrected < 0.05) == (each.verdict != "same")
        assert (each.difference > 0) == (each.verdict == "better") or each.verdict == "same"


def test_a_comparison_computed_by_hand(make_cell):
    cells = [
        make_cell(0, system="first_stage", nDCG_at_10=[0.0, 0.0, 0.0, 0.0]),
        make_cell(1, seed=1, nDCG_at_10=[0.1, 0.2, 0.3, 0.4]),
        make_cell(2, seed=2, nDCG_at_10=[0.1, 0.2, 0.3, 0.4]),
    ]
    table = build_table(cells, ["nDCG@10"])
    (found,) = compare(table, find_baselines(table, ["BM25"]), alpha=0.04)
    # mean 0.25, standard deviation sqrt(0.05 / 3): d = 1.9365, t = 2 d = 3.8730, 3 degrees
    assert found.difference == pytest.approx(0.25)
    assert found.effect == pytest.approx(1.9365, abs=1e-4)
    assert found.p == found.p_corrected == pytest.approx(0.0305, abs=1e-4)
    assert found.verdict == "better"


def test_a_copy_of_the_baseline_does_not_differ(make_cell):
    values = [0.1, 0.9, 0.4]
    table = build_table(
        [make_cell(0, system="first_stage", RR_at_10=values), make_cell(1, RR_at_10=values)],
        ["RR@10"],
    )
    (found,) = compare(table, find_baselines(table, ["first_stage"]))
    assert (found.p, found.effect, found.verdict) == (1.0, 0.0, "same")


def test_a_single_query_is_never_tested(make_cell):
    cells = [make_cell(0, system="first_stage", AP=[0.1]), make_cell(1, AP=[0.2])]
    table = build_table(cells, ["AP"])
    assert compare(table, find_baselines(table, ["first_stage"])) == ()


def test_the_randomization_test_agrees_with_scipys_permutations(make_cell):
    generator = np.random.default_rng(5)
    ours, theirs = generator.uniform(size=(2, 9))
    cells = [make_cell(0, system="first_stage", AP=theirs), make_cell(1, AP=ours)]
    table = build_table(cells, ["AP"])
    (found,) = compare(table, find_baselines(table, ["first_stage"]), test="randomization")
    peer = stats.permutation_test(
        (ours, theirs), lambda a, b: np.mean(a - b), permutation_type="samples"
    )
    assert found.p == pytest.approx(peer.pvalue, abs=0.01)


def test_over_one_collection_the_stratified_test_is_the_paired_t_test():
    differences = np.random.default_rng(1).normal(0.1, 1, 50)
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert stratified_t_test([differences]) == pytest.approx(expected)


def test_over_two_collections_it_is_welchs_test_against_the_negated_other():
    generator = np.random.default_rng(2)
    one, two = generator.normal(0.2, 1, 40), generator.normal(0.1, 3, 15)
    expected = stats.ttest_ind(one, -two, equal_var=False).pvalue
    assert stratified_t_test([one, two]) == pytest.approx(expected)
    assert stratified_t_test([np.array([1, 2, 3]), np.array([1, 1, 4])]) == pytest.approx(
        0.0366, abs=1e-4
    )


def test_without_a_difference_it_rejects_at_its_nominal_rate():
    generator = np.random.default_rng(3)
    rejected = [
        stratified_t_test(
            [generator.normal(0, spread, n) for spread, n in ((1, 40), (2, 12), (1, 9))]
        )
        < 0.05
        for _ in range(2000)
    ]
    # three standard errors of a binomial proportion around 0.05
    assert np.mean(rejected) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 2000))


def test_a_constant_difference_has_no_variance_to_test_with():
    assert stratified_t_test([np.zeros(3), np.zeros(4)]) == 1.0
    assert stratified_t_test([np.ones(3), np.ones(4)]) == 0.0


def test_a_suite_is_tested_over_the_queries_of_all_its_collections(make_cell):
    generator = np.random.default_rng(4)
    cells, values = [], {}
    for place, (name, n) in enumerate({"a": 30, "b": 10}.items()):
        values[name] = generator.uniform(size=(2, n))
        stage, run = values[name]
        cells.append(make_cell(2 * place, system="first_stage", collection=name, AP=stage))
        cells.append(make_cell(2 * place + 1, collection=name, AP=run))
    table = build_table(cells, ["AP"], {"ab": ("a", "b")})
    baseline = find_baselines(table, ["first_stage"])
    (found,) = compare(table, baseline)
    differences = [run - stage for stage, run in values.values()]
    welch = stats.ttest_ind(differences[0], -differences[1], equal_var=False)
    assert found.p == pytest.approx(welch.pvalue)
    assert found.queries == 40
    assert found.difference == pytest.approx(np.mean([d.mean() for d in differences]))
    (randomized,) = compare(table, baseline, test="randomization")
    assert randomized.p == pytest.approx(found.p, abs=0.02)
    assert randomized.effect == found.effect


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("first_stage", ["BM25 (first stage)"]),
        ("bm25", ["BM25 (first stage)"]),
        ("minilm (teacher)", ["minilm (teacher)"]),
        ("L6 infonce", ["L6 infonce (lists)"]),
    ],
)
def test_baselines_match_by_kind_model_or_name(table, name, rows):
    assert [row.name for row in find_baselines(table, [name])] == rows


def test_an_unknown_baseline_is_an_error_with_the_nearest_names(table):
    with pytest.raises(ConfigError, match="did you mean 'L6 infonce"):
        find_baselines(table, ["L6 infonc"])


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"correction": "tukey"}, "--correction 'tukey': use one of holm"),
        ({"test": "welch"}, "--test 'welch': use one of t"),
        ({"alpha": 5}, "--alpha 5: use a number between 0 and 1"),
    ],
)
def test_invalid_options_are_named_with_the_valid_ones(wrong, expected):
    with pytest.raises(ConfigError, match=expected):
        ReportOptions(**wrong)
