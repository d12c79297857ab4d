"""`render` from a real database, filled through the job table's own verbs."""

import json
import re

import pytest
from finished_sweep import submit, work

from xsweep.db.engine import connect
from xsweep.db.results import load_cells
from xsweep.errors import ConfigError
from xsweep.orchestrator.report import render
from xsweep.orchestrator.report.report import FORMATS


@pytest.fixture
def engine(tmp_path):
    return connect(f"sqlite:///{tmp_path / 'x.db'}", create=True)


@pytest.fixture
def finished(engine):
    submit(engine)
    work(engine, until=8)
    return engine


def test_a_finished_sweep_reports_accepted_results_and_the_failure(finished):
    text = render(finished, "demo")
    assert re.search(r"L6 +infonce +\*0\.590\* ± 0\.071 ▲ 2/3", text)
    assert "Missing: 1 of 4 evaluations (1 failed (CONFIG))" in text
    assert "Candidates: BM25 (k1 = 0.9, b = 0.4), top 20." in text
    assert "Checkpoint: best RR@10 on held-out." in text


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_database_gives_the_same_bytes(finished, format):
    assert render(finished, "demo", format=format) == render(finished, "demo", format=format)


def test_a_sweep_can_be_reported_at_any_time(engine):
    submit(engine)
    with pytest.raises(ConfigError, match=r"none .* is accepted yet \(4 waiting\)"):
        render(engine, "demo")
    accepted = []
    for _ in range(8):
        work(engine, until=1)
        if load_cells(engine, "demo")[0].state != "done":
            continue
        places = json.loads(render(engine, "demo", format="json"))["places"]
        accepted.append(sum(len(place["seeds"]) for place in places))
        assert accepted[-1] + sum(sum(p["unfinished"].values()) for p in places) == 4
    assert accepted[-1] == 3


@pytest.mark.parametrize(
    ("sweep", "options", "says"),
    [
        ("dmo", {}, "no sweep 'dmo': did you mean"),
        ("demo", {"measures": ["AP"]}, "AP is not stored in this sweep, which has nDCG@10"),
        ("demo", {"measures": ["ndgc@10"]}, "unknown measure 'ndgc@10'"),
        ("demo", {"baseline": "bm52"}, "baseline 'bm52' is not in this sweep"),
        ("demo", {"format": "pdf"}, "unknown format 'pdf': use one of text"),
        ("demo", {"where": {"seed": ["7"]}}, "no evaluation has seed '7'"),
        ("demo", {"alpha": 1}, "alpha is 1"),
    ],
)
def test_bad_input_is_one_message(finished, sweep, options, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        render(finished, sweep, **options)


def test_measures_go_by_any_spelling(finished):
    assert render(finished, "demo", measures=["ndcg@10"]) == render(finished, "demo")
