from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.anova import anova_lm

from orchestrator.report.build import build_report
from orchestrator.report.effects import (
    effect_sections,
    factors_of,
    marginal_weights,
    variance_shares,
)
from orchestrator.report.table import Row
from orchestrator.report.text import render_text


def grid(backbones, objectives, teachers=("lists",)):
    return [Row("run", b, o, t) for b in backbones for o in objectives for t in teachers]


def test_in_a_full_grid_marginal_means_are_plain_means():
    factors, shadows = factors_of(grid("AB", ["bce", "hinge", "infonce"]))
    assert (list(factors), shadows) == (["backbone", "objective"], [])
    levels, weights = marginal_weights(factors, "objective")
    assert levels == ["bce", "hinge", "infonce"]
    values = np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.7])
    assert weights @ values == pytest.approx([0.3, 0.4, 0.5])


def test_missing_systems_are_made_up_for_by_the_additive_model():
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
    factors, shadows = factors_of(rows)
    assert shadows == []
    levels, weights = marginal_weights(factors, "objective")
    for level, mean in zip(levels, weights @ values, strict=True):
        whole = pd.DataFrame(
            [(b, level, t) for b in "ABCD" for t in "tu"],
            columns=["model", "objective", "teacher"],
        )
        assert mean == pytest.approx(fit.predict(whole).mean())


def test_a_teacher_that_goes_with_its_objective_is_not_told_apart():
    rows = [Row("run", b, o, t) for b in "AB" for o, t in (("bce", "pairs"), ("infonce", "lists"))]
    factors, shadows = factors_of(rows)
    assert (list(factors), shadows) == (["backbone", "objective"], ["teacher"])
    crossed = [*rows, Row("run", "A", "bce", "lists")]
    assert factors_of(crossed)[1] == []


def test_shares_are_type_ii_sums_of_squares_as_statsmodels_gives_them():
    generator = np.random.default_rng(1)
    frame = pd.DataFrame(
        [(b, o, c) for b in "ABC" for o in "xyz" for c in "pq" for _ in range(3)],
        columns=["backbone", "objective", "collection"],
    )
    frame = frame[generator.random(len(frame)) < 0.8]
    frame["value"] = generator.uniform(size=len(frame)) + (frame.objective == "x")
    table = anova_lm(smf.ols("value ~ backbone + objective + collection", frame).fit(), typ=2)
    total = ((frame.value - frame.value.mean()) ** 2).sum()
    factors = {name: list(frame[name]) for name in ("backbone", "objective", "collection")}
    shares = variance_shares(factors, frame.value.to_numpy())
    assert shares.pop("rest") == pytest.approx(table.sum_sq["Residual"] / total)
    for name, share in shares.items():
        assert share == pytest.approx(table.sum_sq[name] / total)


def test_shares_of_a_balanced_grid_add_up_to_one():
    rows = [(b, o) for b in "AB" for o in "xyz" for _ in range(2)]
    factors = {"backbone": [b for b, _ in rows], "objective": [o for _, o in rows]}
    values = np.random.default_rng(2).uniform(size=len(rows))
    shares = variance_shares(factors, values, ("backbone", "objective"))
    assert list(shares) == ["backbone", "objective", "backbone × objective", "rest"]
    assert sum(shares.values()) == pytest.approx(1)


@pytest.fixture(scope="module")
def two_by_two(make_cell):
    """Objective b beats a by 0.2 on both backbones, backbone L6 beats L3 by 0.1."""
    generator = np.random.default_rng(4)
    cells = [make_cell(0, system="first_stage", AP=generator.uniform(0.2, 0.4, 30))]
    for backbone, better in (("L6", 0.1), ("L3", 0.0)):
        for objective, gain in (("a", 0.0), ("b", 0.2)):
            scores = 0.3 + better + gain + generator.normal(0, 0.05, 30)
            cells.append(make_cell(len(cells), backbone=backbone, objective=objective, AP=scores))
    report = build_report(cells, sweep="s", measures=["AP"])
    return replace(report, sections=effect_sections(report))


def test_the_interval_of_two_levels_is_half_the_paired_one(two_by_two):
    marginal = two_by_two.sections[0]
    runs = {
        row: entry.per_query[0] for row, entry in two_by_two.in_column(two_by_two.table.columns[0])
    }
    of = {name: [v for row, v in runs.items() if row.objective == name] for name in "ab"}
    difference = (np.mean(of["b"], axis=0) - np.mean(of["a"], axis=0)) / 2
    low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    line = next(line for line in marginal.lines if line[1] == "b")
    assert line[3:] == (f"+{difference.mean():.3f}", f"+{low:.3f} to +{high:.3f}")


def test_wins_count_pairs_of_the_same_backbone(two_by_two):
    wins = two_by_two.sections[2]
    assert wins.heads == ("", "a", "b")
    assert wins.lines == [("a", "", "0/2 (0)"), ("b", "2/2 (2)", "")]


def test_sections_follow_the_table_and_their_lines_align(two_by_two):
    text = render_text(two_by_two)
    assert text.index("Marginal means, AP") < text.index("Share of the variance, AP")
    assert "objective  b      " in text


def test_a_single_system_has_no_effects(make_cell):
    cells = [make_cell(0, system="first_stage", AP=[0.1, 0.2]), make_cell(1, AP=[0.1, 0.3])]
    assert effect_sections(build_report(cells, sweep="s", measures=["AP"])) == ()
