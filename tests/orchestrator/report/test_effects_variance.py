import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from reports import make_report
from statsmodels.stats.anova import AnovaRM, anova_lm

from xsweep.orchestrator.report.effects import (
    balanced,
    complete_runs,
    f_test,
    sums_of_squares,
    variance_section,
)


def grid(seed, kept=1.0):
    """3 backbones x 3 objectives x 2 collections, 3 times; a backbone of higher values."""
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(
        [(b, o, c) for b in "ABC" for o in "xyz" for c in "pq" for _ in range(3)],
        columns=["backbone", "objective", "collection"],
    )
    frame["value"] = generator.uniform(size=len(frame)) + (frame.backbone == "A")
    frame = frame[generator.random(len(frame)) < kept]
    return frame, {name: list(frame[name]) for name in ("backbone", "objective", "collection")}


def squares(frame, factors):
    pairs = [("backbone", "objective"), ("objective", "collection")]
    return sums_of_squares(factors, frame.value.to_numpy(), pairs)


TERMS = ["backbone", "objective", "collection", "backbone:objective", "objective:collection"]


def test_sums_of_a_balanced_grid_are_those_of_type_ii_by_statsmodels():
    frame, factors = grid(1)
    assert balanced(factors)
    peer = anova_lm(smf.ols(f"value ~ {' + '.join(TERMS)}", frame).fit(), typ=2)
    found = squares(frame, factors)
    for term in TERMS:
        expected = peer.sum_sq[term], peer.df[term]
        assert found[term.replace(":", " × ")] == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:The design matrix is rank-deficient")
def test_sums_with_missing_combinations_are_those_of_nested_models_within_the_total():
    frame, factors = grid(8, kept=0.3)
    assert not balanced(factors)
    assert len(set(zip(factors["backbone"], factors["objective"], strict=True))) == 8
    models = ["value ~ 1", *(f"value ~ {' + '.join(TERMS[:n])}" for n in range(1, 6))]
    peer = anova_lm(*(smf.ols(model, frame).fit() for model in models))
    found = squares(frame, factors)
    assert [square for square, _ in found.values()] == pytest.approx(list(peer.ss_diff[1:]))
    assert [freedom for _, freedom in found.values()] == list(peer.df_diff[1:])
    total = ((frame.value - frame.value.mean()) ** 2).sum()
    assert sum(square for square, _ in found.values()) <= total


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
    return make_report(cells, measures=["AP"], baselines=[])


@pytest.fixture(scope="module")
def lines(crossed):
    (runs,) = complete_runs(crossed)
    section = variance_section(runs)
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
    assert lines["collection"]["share within collections"] == ""


def test_shares_of_an_unbalanced_grid_add_up_to_the_whole_and_the_note_names_their_type(crossed):
    cells = [
        c for c in crossed.cells if (c.labels["backbone"], c.labels["objective"]) != ("L3", "a")
    ]
    (runs,) = complete_runs(make_report(cells, measures=["AP"], baselines=[]))
    section = variance_section(runs)
    assert sum(float(line[1].rstrip("%")) for line in section.lines) == pytest.approx(100, abs=0.4)
    assert "each share is what its source explains beyond those above it (type I)" in section.note


def printed(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def test_p_with_random_collections_is_that_of_statsmodels_repeated_measures_anova(lines, frame):
    means = frame.groupby(["collection", "backbone", "objective"], as_index=False).AP.mean()
    peer = AnovaRM(means, "AP", "collection", within=["backbone", "objective"]).fit().anova_table
    for name in ("backbone", "objective"):
        assert lines[name]["p, collections random"] == printed(peer["Pr > F"][name])


def test_p_with_random_seeds_is_that_of_the_two_way_anova_of_the_runs_means(lines, frame):
    runs = frame.groupby(["backbone", "objective", "seed"], as_index=False).AP.mean()
    peer = anova_lm(smf.ols("AP ~ backbone * objective", runs).fit(), typ=2)["PR(>F)"]
    assert lines["backbone"]["p, seeds random"] == printed(peer["backbone"])
    assert lines["objective"]["p, seeds random"] == printed(peer["objective"])
    assert lines["backbone × objective"]["p, seeds random"] == printed(peer["backbone:objective"])


def test_without_degrees_of_freedom_or_error_there_is_no_p():
    assert f_test(1.0, 0, 1.0, 5) == ""
    assert f_test(1.0, 2, 0.0, 5) == ""
    # F(1, 4) of 2 x 4 / 1 = 8: p = 0.0474; of 2000 x 4 / 1: p = 9e-8
    assert f_test(2.0, 1, 1.0, 4) == "0.047"
    assert f_test(2000.0, 1, 1.0, 4) == "< 0.001"
