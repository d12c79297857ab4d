import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from statsmodels.stats.anova import AnovaRM, anova_lm

from orchestrator.report.build import build_report
from orchestrator.report.effects import factors_of
from orchestrator.report.measured import measured
from orchestrator.report.variance import (
    _balanced_squares,
    _least_squares,
    balanced,
    f_test,
    sums_of_squares,
    variance_section,
)


def test_sums_are_type_ii_as_statsmodels_gives_them():
    generator = np.random.default_rng(1)
    frame = pd.DataFrame(
        [(b, o, c) for b in "ABC" for o in "xyz" for c in "pq" for _ in range(3)],
        columns=["backbone", "objective", "collection"],
    )
    frame = frame[generator.random(len(frame)) < 0.8]
    frame["value"] = generator.uniform(size=len(frame)) + (frame.objective == "x")
    model = "value ~ backbone * objective + collection"
    table = anova_lm(smf.ols(model, frame).fit(), typ=2)
    factors = {name: list(frame[name]) for name in ("backbone", "objective", "collection")}
    found = sums_of_squares(factors, frame.value.to_numpy(), [("backbone", "objective")])
    assert found["backbone × objective"] == pytest.approx(table.sum_sq["backbone:objective"])
    additive = anova_lm(smf.ols(model.replace("*", "+"), frame).fit(), typ=2)
    for name in factors:
        assert found[name] == pytest.approx(additive.sum_sq[name])


def test_in_a_balanced_grid_means_of_groups_are_least_squares():
    generator = np.random.default_rng(2)
    rows = [(b, o, c) for b in "AB" for o in "xyz" for c in "pqrs" for _ in range(2)]
    factors = dict(
        zip(("backbone", "objective", "collection"), zip(*rows, strict=True), strict=True)
    )
    values = generator.uniform(size=len(rows))
    pairs = [("backbone", "objective"), ("objective", "collection")]
    assert balanced(factors)
    slow = _least_squares(factors, values, pairs)
    assert _balanced_squares(factors, values, pairs) == pytest.approx(slow)
    assert not balanced({name: column[:-1] for name, column in factors.items()})


@pytest.fixture(scope="module")
def crossed(make_cell):
    """3 backbones x 2 objectives x 2 seeds on 4 collections."""
    generator = np.random.default_rng(5)
    cells = []
    for backbone in ("L3", "L6", "L12"):
        for gain, objective in enumerate("ab"):
            for seed in (1, 2):
                luck = generator.normal(0, 0.02)
                for hard, collection in enumerate("pqrs"):
                    scores = 0.1 + hard / 10 + gain / 20 + luck + generator.uniform(0, 0.4, 4)
                    labels = {"backbone": backbone, "objective": objective, "seed": seed}
                    cells.append(make_cell(len(cells), collection=collection, AP=scores, **labels))
    return build_report(cells, sweep="s", measures=["AP"], baselines=[])


@pytest.fixture(scope="module")
def lines(crossed):
    (data,) = measured(crossed)
    factors, _ = factors_of(data.rows)
    section = variance_section(data, factors, "")
    return {line[0]: dict(zip(section.heads, line, strict=True)) for line in section.lines}


@pytest.fixture(scope="module")
def frame(crossed):
    return pd.DataFrame([{**cell.labels, "AP": cell.means["AP"]} for cell in crossed.cells])


def test_shares_of_a_balanced_grid_add_up_to_the_whole(lines):
    assert list(lines) == [
        *("backbone", "objective", "collection", "backbone × objective"),
        *("backbone × collection", "objective × collection", "seeds", "rest"),
    ]
    shares = [float(line["share"].rstrip("%")) for line in lines.values()]
    assert sum(shares) == pytest.approx(100, abs=0.4)
    assert lines["collection"]["of what is not collection"] == ""


def printed(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def test_with_random_collections_it_is_statsmodels_repeated_measures_anova(lines, frame):
    means = frame.groupby(["collection", "backbone", "objective"], as_index=False).AP.mean()
    peer = AnovaRM(means, "AP", "collection", within=["backbone", "objective"]).fit().anova_table
    for name in ("backbone", "objective"):
        assert lines[name]["p, collections random"] == printed(peer["Pr > F"][name])


def test_with_random_seeds_it_is_the_two_way_anova_of_the_runs_means(lines, frame):
    runs = frame.groupby(["backbone", "objective", "seed"], as_index=False).AP.mean()
    peer = anova_lm(smf.ols("AP ~ backbone * objective", runs).fit(), typ=2)["PR(>F)"]
    assert lines["backbone"]["p, seeds random"] == printed(peer["backbone"])
    assert lines["objective"]["p, seeds random"] == printed(peer["objective"])
    assert lines["backbone × objective"]["p, seeds random"] == printed(peer["backbone:objective"])


def test_without_freedom_or_error_there_is_no_p():
    assert np.isnan(f_test(1.0, 0, 1.0, 5))
    assert np.isnan(f_test(1.0, 2, 0.0, 5))
    # F(1, 4) of 2 x 4 / 1 = 8: p = 0.0474
    assert f_test(2.0, 1, 1.0, 4) == pytest.approx(0.0474, abs=1e-4)
