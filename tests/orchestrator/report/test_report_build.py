import re
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from reports import make_report

from xsweep.errors import ConfigError
from xsweep.evaluator.data.suites import SUITES
from xsweep.orchestrator.report import FORMATS, render, select
from xsweep.orchestrator.report.caption import Style, caption
from xsweep.orchestrator.report.effects import with_effects
from xsweep.orchestrator.report.table import complete_suites


def test_permuting_cells_queries_and_seeds_changes_no_byte_of_any_format(small_sweep):
    def rendered(cells):
        report = with_effects(make_report(cells, measures=["nDCG@10", "RR@10"], pairs=True))
        return [render(report, format) for format in FORMATS]

    def shuffled(cell):
        places = random.sample(range(len(cell.query_ids)), len(cell.query_ids))
        return replace(
            cell,
            query_ids=tuple(cell.query_ids[place] for place in places),
            scores={measure: np.array(s)[places] for measure, s in cell.scores.items()},
            labels=dict(random.sample(sorted(cell.labels.items()), len(cell.labels))),
        )

    expected = rendered(small_sweep)
    for seed in range(3):
        random = Random(seed)
        permuted = [shuffled(cell) for cell in random.sample(small_sweep, len(small_sweep))]
        assert rendered(permuted) == expected


def test_conditions_on_runs_keep_first_stages_and_teachers(small_sweep):
    kept = select(small_sweep, {"backbone": ["L3"], "seed": ["1"], "teacher": ["lists", "pairs"]})
    assert [cell.labels["system"] for cell in kept] == ["first_stage", "teacher", "run", "run"]
    assert {cell.labels.get("backbone", "L3") for cell in kept} == {"L3"}
    with pytest.raises(ConfigError, match="no evaluation has teacher 'minilm'"):
        select(small_sweep, {"teacher": ["minilm"]})


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (
            {"backbon": ["L3"]},
            "no evaluation has a label 'backbon'; did you mean 'backbone'? There are: backbone",
        ),
        ({"backbone": ["L33"]}, "no evaluation has backbone 'L33'; did you mean 'L3'? There are"),
    ],
)
def test_a_condition_that_no_evaluation_meets_is_an_error(small_sweep, where, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        select(small_sweep, where)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"by": "dataset"}, "--by 'dataset': use one of collection, suite"),
        ({"digits": 0}, "--digits 0: use 1 to 10"),
        ({"best": "row"}, "--best 'row': use one of column, block"),
        ({"measures": ["P@5"]}, "P@5 is not stored"),
        ({"baselines": ["bm26"]}, "baseline 'bm26' is not in this sweep"),
    ],
)
def test_invalid_options_are_named(small_sweep, wrong, expected):
    with pytest.raises(ConfigError, match=expected):
        make_report(small_sweep, **wrong)


def test_only_complete_suites_become_columns_and_collections_match_by_name_or_id():
    in_domain = SUITES["in-domain"]
    lotte = set(SUITES["lotte-search"].values())
    assert complete_suites({*in_domain, "robust04", "scifact"} | lotte) == {
        "in-domain": tuple(sorted(in_domain)),
        "lotte-search": tuple(sorted(lotte)),
        "robust04": ("robust04",),
        "ood": tuple(sorted({"robust04"} | lotte)),
    }


def test_each_first_stage_has_suites_of_its_own():
    in_domain = SUITES["in-domain"]
    first, *rest = in_domain
    collections = {f"{name} (BM25)" for name in in_domain} | {f"{name} (SPLADE)" for name in rest}
    found = complete_suites(collections)
    assert found == {"in-domain (BM25)": tuple(f"{name} (BM25)" for name in sorted(in_domain))}
    both = complete_suites(collections | {f"{first} (SPLADE)"})
    assert list(both) == ["in-domain (BM25)", "in-domain (SPLADE)"]


def test_best_and_second_best_are_ranked_by_printed_values_and_ties_share_the_mark(make_cell):
    report = make_report(
        [
            make_cell(0, system="first_stage", nDCG_at_10=[0.5, 0.5]),
            make_cell(1, objective="a", nDCG_at_10=[0.70004, 0.7]),
            make_cell(2, objective="b", nDCG_at_10=[0.69996, 0.7]),
            make_cell(3, objective="c", nDCG_at_10=[0.6, 0.6]),
            make_cell(4, objective="d", nDCG_at_10=[0.6001, 0.6]),
        ],
    )
    (column,) = report.table.columns
    shown = [report.shown(row, column) for row in report.table.rows]
    assert [(each.value, each.rank) for each in shown] == [
        ("0.500", 0),
        ("0.700", 1),
        ("0.700", 1),
        ("0.600", 2),
        ("0.600", 2),
    ]


def test_a_single_system_is_the_best_and_none_is_second(make_cell):
    report = make_report([make_cell(0, system="first_stage", AP=[0.3])], measures=["AP"])
    assert set(report.ranks.values()) == {1}
    assert report.comparisons == ()


def test_beyond_26_baselines_letters_become_numbers(make_cell):
    cells = [make_cell(i, objective=f"o{i}", AP=[0.1, 0.2 + i / 100]) for i in range(28)]
    names = [f"L6 o{i}" for i in range(28)]
    report = make_report(cells, measures=["AP"], baselines=names)
    assert [report.letter(row) for row in report.baselines[:2]] == ["a", "b"]
    assert [report.letter(row) for row in report.baselines[25:]] == ["z", "27", "28"]


@pytest.fixture(scope="module")
def blocks(make_cell):
    """L6: c beats b beats a by far; L3: two equal systems; little noise."""
    generator = np.random.default_rng(6)
    cells = [make_cell(0, system="first_stage", AP=generator.uniform(0.4, 0.5, 20))]
    for backbone, levels in (("L6", (0.1, 0.3, 0.7)), ("L3", (0.2, 0.2))):
        for objective, level in zip("abc", levels, strict=False):
            scores = level + generator.uniform(0, 0.05, 20)
            cells.append(make_cell(len(cells), backbone=backbone, objective=objective, AP=scores))
    return cells


def test_with_pairs_letters_name_the_systems_of_the_block_that_each_system_beats(blocks):
    report = make_report(blocks, measures=["AP"], pairs=True)
    (column,) = report.table.columns
    # 5 systems against BM25, 3 pairs of L6 and 1 of L3, corrected as one family
    assert len(report.comparisons) == 5 + 3 + 1
    pairs = [each for each in report.comparisons if each.within_block]
    assert {(each.row.model, each.baseline.model) for each in pairs} == {("L6",) * 2, ("L3",) * 2}
    shown = {report.name(row): report.shown(row, column) for row in report.table.rows}
    assert {name: each.beaten for name, each in shown.items() if each.beaten} == {
        "L6 b": ("a",),
        "L6 c": ("a", "b"),
    }
    assert [report.label(row)[-1] for row in report.table.rows[1:]] == [
        *("a [a]", "b [b]", "c [c]"),
        *("a [a]", "b [b]"),
    ]
    assert shown["L6 c"].marks == (("better", ""),)


def test_a_pair_is_listed_under_both_of_its_systems_as_seen_from_each(blocks):
    report = make_report(blocks, measures=["AP"], pairs=True, baselines=[])
    one, other = (row for row in report.table.rows if row.model == "L3")
    (column,) = report.table.columns
    (here,), (there,) = report.compared[one, column], report.compared[other, column]
    assert (here.difference, here.effect, here.p) == (-there.difference, -there.effect, there.p)
    assert (here.row, here.baseline) == (there.baseline, there.row)


def test_a_run_that_is_a_baseline_is_not_compared_twice(blocks):
    report = make_report(blocks, measures=["AP"], pairs=True, baselines=["L6 a"])
    pairs = [{each.row, each.baseline} for each in report.comparisons]
    assert len(pairs) == len({frozenset(pair) for pair in pairs}) == 5 + 1 + 1


def test_systems_beyond_26_are_numbered_and_the_caption_explains_it(make_cell):
    generator = np.random.default_rng(0)
    cells = [
        make_cell(i, objective=f"o{i}", AP=i / 40 + generator.uniform(0, 0.01, 9))
        for i in range(28)
    ]
    report = make_report(cells, measures=["AP"], pairs=True, baselines=[])
    last = report.shown(report.table.rows[27], report.table.columns[0])
    assert last.beaten_text.startswith("a,b,c,d,")
    assert last.beaten_text.endswith(",y,z,27")
    assert "after z, numbers from 27 on" in " ".join(caption(report, Style("", "", "", "")))


def test_best_of_a_block_is_the_best_of_its_backbone(blocks):
    report = make_report(blocks, measures=["AP"], best="block")
    ranks = {report.name(row): rank for (row, _), rank in report.ranks.items()}
    best = max(("L3 a", "L3 b"), key=lambda name: shown_value(report, name))
    assert ranks == {"L6 c": 1, "L6 b": 2, "L3 a": 2, "L3 b": 2} | {best: 1}
    assert "Best in each backbone's rows of a column" in " ".join(
        caption(report, Style("", "", "", ""))
    )


def shown_value(report, name):
    row = next(row for row in report.table.rows if report.name(row) == name)
    return report.shown(row, report.table.columns[0]).value
