import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from reports import make_report
from scipy import stats

from xsweep.orchestrator.report.effects import (
    complete_runs,
    factors_of,
    intervals,
    marginal_weights,
    with_effects,
)
from xsweep.orchestrator.report.render_text import render_text
from xsweep.orchestrator.report.table import Row


def section(report, title):
    return next(each for each in report.sections if each.title.startswith(title))


def grid(backbones, objectives, teachers=("lists",)):
    return [Row("run", b, o, t) for b in backbones for o in objectives for t in teachers]


def test_in_a_full_grid_marginal_means_are_plain_means():
    factors, confounded = factors_of(grid("AB", ["bce", "hinge", "infonce"]))
    assert (list(factors), confounded) == (["backbone", "objective"], [])
    levels, weights = marginal_weights(factors, "objective")
    assert levels == ["bce", "hinge", "infonce"]
    values = np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.7])
    assert weights @ values == pytest.approx([0.3, 0.4, 0.5])


def test_the_additive_model_predicts_missing_systems():
    rows = grid("AB", ["bce", "infonce"])[:3]  # B has no infonce
    factors, _ = factors_of(rows)
    # A: bce .1, infonce .4; B: bce .3. The model expects B infonce at .6, so infonce means .5
    _, weights = marginal_weights(factors, "objective")
    assert weights @ np.array([0.1, 0.4, 0.3]) == pytest.approx([0.2, 0.5])


def test_marginal_means_agree_with_statsmodels_on_an_unbalanced_grid():
    generator = np.random.default_rng(0)
    rows = [row for row in grid("ABCD", ["a", "b", "c"], ["t", "u"]) if generator.random() < 0.7]
    values = generator.uniform(size=len(rows))
    frame = pd.DataFrame(rows).assign(value=values)
    fit = smf.ols("value ~ C(model) + C(objective) + C(teacher)", frame).fit()
    factors, confounded = factors_of(rows)
    assert confounded == []
    levels, weights = marginal_weights(factors, "objective")
    for level, mean in zip(levels, weights @ values, strict=True):
        whole = pd.DataFrame(
            [(b, level, t) for b in "ABCD" for t in "tu"],
            columns=["model", "objective", "teacher"],
        )
        assert mean == pytest.approx(fit.predict(whole).mean())


def test_a_teacher_that_always_goes_with_one_objective_is_confounded():
    rows = [Row("run", b, o, t) for b in "AB" for o, t in (("bce", "pairs"), ("infonce", "lists"))]
    factors, confounded = factors_of(rows)
    assert (list(factors), confounded) == (["backbone", "objective"], ["teacher"])
    crossed = [*rows, Row("run", "A", "bce", "lists")]
    assert factors_of(crossed)[1] == []


@pytest.fixture(scope="module")
def two_by_two(make_cell):
    """Objective b beats a by 0.2 on both backbones, backbone L6 beats L3 by 0.1."""
    generator = np.random.default_rng(4)
    cells = [make_cell(0, system="first_stage", AP=generator.uniform(0.2, 0.4, 30))]
    for backbone, better in (("L6", 0.1), ("L3", 0.0)):
        for objective, gain in (("a", 0.0), ("b", 0.2)):
            scores = 0.3 + better + gain + generator.normal(0, 0.05, 30)
            cells.append(make_cell(len(cells), backbone=backbone, objective=objective, AP=scores))
    report = make_report(cells, measures=["AP"])
    return with_effects(report)


def test_the_interval_of_two_levels_is_half_the_paired_one(two_by_two):
    marginal = section(two_by_two, "Marginal means")
    runs = {
        row: entry.per_query[0]
        for (row, _), entry in two_by_two.table.entries.items()
        if row.system == "run"
    }
    of = {name: [v for row, v in runs.items() if row.objective == name] for name in "ab"}
    difference = (np.mean(of["b"], axis=0) - np.mean(of["a"], axis=0)) / 2
    low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    line = next(line for line in marginal.lines if line[1] == "b")
    assert line[3:] == (f"+{difference.mean():.3f}", f"+{low:.3f} to +{high:.3f}")


def test_wins_count_pairs_of_the_same_backbone(two_by_two):
    wins = section(two_by_two, "Wins")
    assert wins.heads == ("", "a", "b")
    assert wins.lines == [("a", "", "0/2 (0)"), ("b", "2/2 (2)", "")]


def test_sections_follow_the_table_and_their_lines_align(two_by_two):
    text = render_text(two_by_two)
    assert text.index("Marginal means, AP") < text.index("Share of the variance, AP")
    assert "objective  b      " in text


def test_a_single_system_has_no_effects(make_cell):
    cells = [make_cell(0, system="first_stage", AP=[0.1, 0.2]), make_cell(1, AP=[0.1, 0.3])]
    assert with_effects(make_report(cells, measures=["AP"])).sections == ()


@pytest.fixture(scope="module")
def crossed(make_cell):
    """2 backbones x 3 objectives x 2 seeds on 4 collections of 5 queries each."""
    generator = np.random.default_rng(8)
    cells = []
    for collection in "pqrs":
        hard = generator.uniform(0, 0.3)
        for backbone in ("L3", "L6"):
            for gain, objective in enumerate("abc"):
                for seed in (1, 2):
                    scores = hard + gain / 10 + generator.uniform(0, 0.5, 5)
                    cells.append(
                        make_cell(
                            len(cells),
                            backbone=backbone,
                            objective=objective,
                            seed=seed,
                            collection=collection,
                            AP=scores,
                        )
                    )
    return make_report(cells, measures=["AP"], baselines=[])


def around(values, widths):
    return values[0] - widths[0], values[0] + widths[0]


def test_intervals_separate_variation_over_queries_seeds_and_collections(crossed):
    (data,) = complete_runs(crossed)
    objectives = [row.objective for row in data.rows]
    weights = np.array([(o == "b") / 2 - (o == "a") / 2 for o in objectives])
    values, widths = intervals(data, weights[None])
    cells = [{**cell.labels, "AP": cell.means["AP"]} for cell in crossed.cells if cell.means]
    frame = pd.DataFrame(cells)
    # collections: one difference each, a paired t interval over them
    wide = frame.groupby(["collection", "objective"]).AP.mean().unstack()
    per_collection = (wide.b - wide.a).to_numpy()
    assert values[0] == pytest.approx(per_collection.mean())
    interval = stats.ttest_1samp(per_collection, 0).confidence_interval(0.95)
    assert around(values, widths["collections"]) == pytest.approx(tuple(interval))
    # seeds: a saturated model of each run's mean over the collections
    runs = frame.groupby(["backbone", "objective", "seed"], as_index=False).AP.mean()
    fit = smf.ols("AP ~ 0 + C(backbone):C(objective)", runs).fit()
    names = [f"C(backbone)[{row.model}]:C(objective)[{row.objective}]" for row in data.rows]
    contrast = [weights[names.index(name)] for name in fit.params.index]
    interval = fit.t_test(contrast).conf_int(0.05)[0]
    assert around(values, widths["seeds"]) == pytest.approx(tuple(interval))
    # queries: the mean over collections of paired differences, each collection's own variance
    differences = [weights @ scores for scores in data.scores]
    error = np.sqrt(sum(d.var(ddof=1) / len(d) for d in differences)) / len(differences)
    assert widths["queries"][0] / error == pytest.approx(stats.t.ppf(0.975, 16), rel=0.2)


def test_effects_are_computed_over_collections_for_any_columns(small_sweep, make_cell):
    cells = []
    for place, name in enumerate(["msmarco-dev", "trec-dl-2019", "trec-dl-2020", "else"]):
        for gain, objective in enumerate("ab"):
            scores = [0.1 + gain / 10, 0.2 + gain / 5, 0.3 + place / 10]
            cells.append(make_cell(len(cells), collection=name, objective=objective, AP=scores))
    by = {
        by: with_effects(make_report(cells, measures=["AP"], by=by, baselines=[])).sections
        for by in ("collection", "suite")
    }
    assert by["suite"] == by["collection"]
    assert by["suite"]
