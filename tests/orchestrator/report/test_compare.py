import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from xsweep.errors import ConfigError
from xsweep.orchestrator.report.compare import compare_systems, render_differences

IDS = ["q1", "q2", "q3", "q4", "q5"]
TEXTS = {"q1": "what is a fencing token", "q3": "tie | break\x1b[31m", "q5": "long " * 50}


@pytest.fixture
def cells(make_cell):
    """A over two seeds: .5 .4 .9 .2 .1; B .1 .4 1. .2 .3: gains of .4, 0, -.1, 0, -.2."""
    return [
        make_cell(0, system="first_stage", query_ids=IDS, AP=[0.1, 0.4, 1.0, 0.2, 0.3]),
        make_cell(1, seed=1, query_ids=IDS, AP=[0.4, 0.5, 0.8, 0.1, 0.0]),
        make_cell(2, seed=2, query_ids=IDS[::-1], AP=[0.2, 0.3, 1.0, 0.3, 0.6]),
    ]


@pytest.fixture
def compared(cells):
    return compare_systems(cells, "L6 infonce", "BM25", measures=["AP"], texts=lambda cell: TEXTS)


def test_wins_losses_and_the_largest_changes_computed_by_hand(compared):
    one, other, (found,) = compared
    assert (one.name, other.name) == ("L6 infonce (lists)", "BM25 (first stage)")
    assert (found.a, found.b, found.seeds) == (pytest.approx(0.42), pytest.approx(0.40), (2, 1))
    assert (found.wins, found.losses, len(found.queries)) == (1, 2, 5)
    # q2 and q4 differ by rounding alone and are in the order of their ids
    assert [each.query_id for each in found.queries] == ["q1", "q2", "q4", "q3", "q5"]
    assert found.queries[0].difference == pytest.approx(0.4)
    assert found.queries[0].text == "what is a fencing token"
    assert found.queries[-1].difference == pytest.approx(-0.2)


def test_test_and_interval_agree_with_scipy(compared):
    (found,) = compared[2]
    peer = stats.ttest_rel([0.5, 0.4, 0.9, 0.2, 0.1], [0.1, 0.4, 1.0, 0.2, 0.3])
    low, high = peer.confidence_interval(0.95)
    assert found.p == pytest.approx(peer.pvalue)
    assert found.interval == (pytest.approx(low), pytest.approx(high))
    # one collection and one measure: nothing to correct for
    assert found.p_corrected == found.p


def test_several_collections_are_corrected_together(cells, make_cell):
    more = [
        make_cell(3, system="first_stage", collection="web", AP=[0.1, 0.2, 0.3, 0.2]),
        make_cell(4, collection="web", AP=[0.5, 0.7, 0.6, 0.5]),
    ]
    _, _, found = compare_systems([*cells, *more], "L6 infonce", "BM25", measures=["AP"])
    by = {each.collection: each for each in found}
    assert by["web"].p_corrected == pytest.approx(2 * by["web"].p)
    assert by["news"].p_corrected == pytest.approx(by["news"].p)


def test_exchanging_the_systems_reverses_every_sign(cells, compared):
    _, _, (there,) = compare_systems(cells, "BM25", "L6 infonce", measures=["AP"])
    (here,) = compared[2]
    assert (there.wins, there.losses) == (here.losses, here.wins)
    assert there.interval == pytest.approx((-here.interval[1], -here.interval[0]))
    assert (there.p, there.effect) == (pytest.approx(here.p), pytest.approx(-here.effect))


TEXT = """\
s: L6 infonce (lists) vs. BM25 (first stage)

AP on news: 0.42 vs. 0.40 (2 seeds and one run), difference +0.02 (95% CI: −0.26 to +0.30), \
p = 0.854, d = +0.09
5 queries: 1 better, 2 equal, 2 worse

Largest gains
  +0.40  0.10 → 0.50  q1  what is a fencing token

Largest losses
  −0.20  0.30 → 0.10  q5  long long long long long long long long long long long long long long \
long long long …
  −0.10  1.00 → 0.90  q3  tie | break [31m
"""


def test_text_shows_what_changed_most_and_no_control_character(compared):
    one, other, found = compared
    text = render_differences("s", (one, other), found, digits=2)
    assert text.startswith(TEXT)
    assert "uncorrected" in text


def test_rounding_is_not_a_gain(compared):
    one, other, found = compared
    assert "q2" not in render_differences("s", (one, other), found)


def test_markdown_keeps_its_columns_for_any_text(compared):
    one, other, found = compared
    text = render_differences("s", (one, other), found, format="markdown")
    assert "| −0.100 | 1.000 | 0.900 | q3 | tie \\| break \\[31m |" in text


def test_csv_and_json_have_every_query(compared):
    one, other, found = compared
    lines = list(
        csv.DictReader(io.StringIO(render_differences("s", (one, other), found, format="csv")))
    )
    assert [line["query_id"] for line in lines] == ["q1", "q2", "q4", "q3", "q5"]
    document = json.loads(render_differences("s", (one, other), found, format="json"))
    assert document["schema"] == "xsweep.compare/1"
    (place,) = document["compared"]
    assert (place["wins"], place["losses"], len(place["queries"])) == (1, 2, 5)
    assert [float(line["difference"]) for line in lines] == [
        each["difference"] for each in place["queries"]
    ]


def test_a_single_query_has_a_difference_but_no_test(make_cell):
    cells = [make_cell(0, system="first_stage", AP=[0.1]), make_cell(1, AP=[0.3])]
    one, other, (found,) = compare_systems(cells, "L6 infonce", "BM25", measures=["AP"])
    assert (found.p, np.isnan(found.effect)) == (1.0, True)
    json.loads(render_differences("s", (one, other), [found], format="json"))
    assert "nan" not in render_differences("s", (one, other), [found])


@pytest.mark.parametrize(
    ("a", "b", "options", "expected"),
    [
        ("L6 infonc", "BM25", {}, "system 'L6 infonc' is not in this sweep; did you mean 'L6 inf"),
        ("BM25", "first_stage", {}, "are the same system, 'BM25 (first stage)'"),
        ("L6 infonce", "BM25", {"measures": ["P@5"]}, "P@5 is not stored"),
    ],
)
def test_unknown_names_are_one_message(cells, a, b, options, expected):
    with pytest.raises(ConfigError) as caught:
        compare_systems(cells, a, b, **({"measures": ["AP"]} | options))
    assert expected in str(caught.value)


def test_an_ambiguous_name_is_an_error_that_lists_the_systems(make_cell):
    cells = [
        make_cell(i, teacher=teacher, AP=[0.1, 0.2]) for i, teacher in enumerate(["pairs", "lists"])
    ]
    with pytest.raises(ConfigError, match=r"names 2 systems: 'L6 infonce \(pairs\)', 'L6 infonce"):
        compare_systems(cells, "L6 infonce", "L6 infonce (lists)", measures=["AP"])


def test_systems_that_share_no_collection_are_an_error(make_cell):
    cells = [
        make_cell(0, system="first_stage", AP=[0.1, 0.2]),
        make_cell(1, collection="web", AP=[0.1, 0.2]),
    ]
    with pytest.raises(ConfigError, match="have no collection on which both"):
        compare_systems(cells, "L6 infonce", "BM25", measures=["AP"])
