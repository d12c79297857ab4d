"""Reports from a real database, filled through the functions of the job table."""

import json
import re
from dataclasses import replace
from hashlib import sha256

import pytest
from finished_sweep import submit, work
from reports import make_report, report_text

from xsweep.db.engine import connect
from xsweep.db.results import load_cells
from xsweep.errors import ConfigError, DataError
from xsweep.orchestrator.report import FORMATS, join


@pytest.fixture
def engine(tmp_path):
    return connect(f"sqlite:///{tmp_path / 'x.db'}", create=True)


@pytest.fixture
def finished(engine):
    submit(engine)
    work(engine, until=8)
    return engine


def test_a_finished_sweep_reports_accepted_results_and_the_failure(finished):
    text = report_text(finished, "demo")
    assert re.search(r"L6 +infonce +\*0\.590\* ± 0\.071 ▲ 2/3", text)
    caption = " ".join(text.split())
    assert "Missing: 1 of 4 evaluations (1 failed (CONFIG))" in caption
    assert "Candidates: BM25 (k1 = 0.9, b = 0.4), top 20." in caption
    assert "Checkpoint: best RR@10 on held-out." in caption


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_database_gives_the_same_bytes(finished, format):
    assert report_text(finished, "demo", format=format) == report_text(
        finished, "demo", format=format
    )


def test_a_sweep_can_be_reported_at_any_time(engine):
    submit(engine)
    with pytest.raises(ConfigError, match=r"none .* is accepted yet \(4 waiting\)"):
        report_text(engine, "demo")
    accepted = []
    for _ in range(8):
        work(engine, until=1)
        if load_cells(engine, "demo")[0].state != "done":
            continue
        places = json.loads(report_text(engine, "demo", format="json"))["places"]
        accepted.append(sum(len(place["seeds"]) for place in places))
        assert accepted[-1] + sum(sum(p["unfinished"].values()) for p in places) == 4
    assert accepted[-1] == 3


@pytest.mark.parametrize(
    ("sweep", "options", "expected"),
    [
        ("dmo", {}, "no sweep 'dmo': did you mean"),
        ("demo", {"measures": ["AP"]}, "AP is not stored in this sweep, which has nDCG@10"),
        ("demo", {"measures": ["ndgc@10"]}, "unknown measure 'ndgc@10'"),
        ("demo", {"baselines": ["bm52"]}, "baseline 'bm52' is not in this sweep"),
        ("demo", {"format": "pdf"}, "unknown format 'pdf': use one of text"),
        ("demo", {"where": {"seed": ["7"]}}, "no evaluation has seed '7'"),
        ("demo", {"alpha": 1}, "--alpha 1:"),
    ],
)
def test_invalid_input_is_one_message(finished, sweep, options, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        report_text(finished, sweep, **options)


def test_measures_match_in_any_spelling(finished):
    assert report_text(finished, "demo", measures=["ndcg@10"]) == report_text(finished, "demo")


def evaluation(make_cell, place, name, scores, first=0, **labels):
    """An evaluation on `news` whose identity is that of its name."""
    ids = [f"q{first + number}" for number in range(len(scores))]
    cell = make_cell(place, query_ids=ids, nDCG_at_10=scores, **labels)
    return replace(cell, identity=sha256(name.encode()).hexdigest())


def test_sweeps_share_a_table_in_which_an_equal_evaluation_counts_once(make_cell):
    bm25 = evaluation(make_cell, 1, "bm25", [0.1, 0.2, 0.3], system="first_stage")
    slow = evaluation(make_cell, 2, "slow", [0.4, 0.5, 0.6])
    fast = evaluation(make_cell, 3, "fast", [0.5, 0.6, 0.7])
    own = evaluation(make_cell, 4, "own", [0.9, 0.8, 0.7], objective="bce")
    cells, notes = join({"first": [bm25, slow], "second": [bm25, fast, own]})
    report = make_report(cells, "first and second")
    assert [report.name(row) for row in report.table.rows] == [
        "BM25 (first stage)",
        *("L6 infonce [first]", "L6 infonce [second]", "L6 bce"),
    ]
    assert [each.difference for each in report.comparisons] == pytest.approx([0.3, 0.4, 0.6])
    assert notes == ()


def test_sweeps_are_compared_on_the_queries_that_all_their_evaluations_have(make_cell):
    first = evaluation(make_cell, 1, "first", [0.1, 0.2, 0.3, 0.4], system="first_stage")
    second = evaluation(make_cell, 2, "second", [0.5, 0.4, 0.9], first=2)
    cells, notes = join({"one": [first], "two": [second]})
    assert [cell.query_ids for cell in cells] == [("q2", "q3")] * 2
    (comparison,) = make_report(cells).comparisons
    assert (comparison.difference, comparison.queries) == (pytest.approx(0.45 - 0.35), 2)
    assert notes == (
        "Only the 2 of 5 queries of news count that all its evaluations have; recall and queries "
        "without results are over each one's own.",
    )

    apart = evaluation(make_cell, 2, "apart", [0.5], first=9)
    with pytest.raises(DataError, match="no query of news in common"):
        join({"one": [first], "two": [apart]})


def test_a_report_of_two_sweeps_names_both(finished):
    submit(finished, "again")
    text = report_text(finished, ["demo", "again"])
    assert text.startswith("demo and again: nDCG@10 on news")
    one = report_text(finished, "demo")
    assert text.partition("\n")[2] == one.partition("\n")[2]
    with pytest.raises(ConfigError, match="--cost: the hours of one sweep at a time"):
        report_text(finished, ["demo", "again"], cost=True)
