"""Reports from a real database, filled through the functions of the job table."""

import json
import re

import pytest
from finished_sweep import submit, work
from reports import report_text

from xsweep.db.engine import connect
from xsweep.db.results import load_cells
from xsweep.errors import ConfigError
from xsweep.orchestrator.report import FORMATS


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
