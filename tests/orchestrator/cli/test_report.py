"""`xsweep report` and `xsweep compare` from outside: exit codes, messages, files."""

import gzip
import json
import re
import shlex
import subprocess
import sys

import pytest
from finished_sweep import QUERIES, submit, work
from typer.testing import CliRunner, Result

from xsweep.db.engine import connect
from xsweep.orchestrator.cli import app


@pytest.fixture
def submitted(home):
    engine = connect(f"sqlite:///{home / 'xsweep.db'}", create=True)
    submit(engine)
    return engine


@pytest.fixture
def finished(submitted, home):
    work(submitted, until=8)
    folder = home / "store" / "prepare candidates"
    folder.mkdir(parents=True)
    with gzip.open(folder / "queries.jsonl.gz", "wt") as file:
        for query in QUERIES:
            file.write(json.dumps({"id": query, "text": f"text of {query}"}) + "\n")
    return submitted


def xsweep(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments), prog_name="xsweep")
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["dmo"], "error: no sweep 'dmo': did you mean 'demo'?"),
        (["--measure", "AP"], "error: measure AP is not stored in this sweep, which has nDCG@10"),
        (["--measure", "ndgc@10"], "error: unknown measure 'ndgc@10'"),
        (["--baseline", "L6 infonc"], "is not in this sweep; did you mean 'L6 infonce (lists)'?"),
        (["--compare-to", "morand2026"], "error: the reference 'morand2026' has nothing in common"),
        (["--compare-to", "morand25"], "did you mean 'morand2026'?"),
        (["--format", "pdf"], "error: unknown format 'pdf': use one of text, markdown"),
        (["--where", "backbone"], "error: --where 'backbone': write label=value"),
        (["--where", "backbone=L7"], "error: no evaluation has backbone 'L7'. There are: L6"),
        (["--where", "backbone=L6", "objective=x"], "no evaluation has objective 'x'. There are:"),
        (["demo", "other"], "error: no sweep 'other': there is demo"),
        (["--seeds", "1,9"], "error: no evaluation has seed '9'. There are: 1, 2, 3"),
        (["--by", "topic"], "error: --by 'topic': use one of collection, suite"),
        (["--best", "row"], "error: --best 'row': use one of column, block"),
        (["--test", "welch"], "error: --test 'welch': use one of t, randomization"),
        (["--correction", "tukey"], "error: --correction 'tukey': use one of holm"),
    ],
)
def test_invalid_input_is_one_message_and_exit_code_2(finished, arguments, expected):
    result = xsweep("report", *arguments, code=2)
    assert expected in result.stderr
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_without_results_the_message_counts_the_states(submitted):
    result = xsweep("report", code=2)
    assert "none of the sweep's evaluations is accepted yet (4 waiting)" in result.stderr


def test_without_a_sweep_the_message_asks_to_submit_one(home):
    connect(f"sqlite:///{home / 'xsweep.db'}", create=True)
    assert "no sweep has been submitted yet" in xsweep("report", code=2).stderr


def test_a_large_report_says_at_once_that_it_takes_a_while(finished, monkeypatch):
    assert xsweep("report").stderr == ""
    monkeypatch.setattr("xsweep.orchestrator.cli.report.MANY_EVALUATIONS", 3)
    large = xsweep("report")
    assert large.stderr == "Reading 4 evaluations takes a few seconds.\n"
    assert large.stdout == xsweep("report").stdout


def test_a_pipe_gets_the_columns_and_the_signs_that_its_reader_can_show(finished, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert 100 < max(map(len, xsweep("report").stdout.splitlines())) <= 110
    monkeypatch.setenv("COLUMNS", "70")
    narrow = xsweep("report").stdout
    assert 60 < max(map(len, narrow.splitlines())) <= 70
    latin = CliRunner(charset="latin-1").invoke(app, ["report"], prog_name="xsweep")
    assert latin.exit_code == 0
    signs = str.maketrans({"▲": "^", "▼": "v", "─": "-", "−": "-"})
    assert latin.stdout == narrow.translate(signs)
    assert "±" in latin.stdout, "latin-1 has it"


@pytest.mark.parametrize("command", ["report", "compare 'L6 infonce' first_stage"])
def test_a_reader_that_closes_its_pipe_is_no_error(finished, command):
    program = shlex.join([sys.executable, "-m", "xsweep.orchestrator", *shlex.split(command)])
    shell = f"{program} | true; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert (found.returncode, "Error" in found.stderr) == (0, False), found.stderr


def test_seeds_conditions_and_baselines_are_in_the_caption(finished):
    text = xsweep("report", "--seeds", "1", "--baseline", "none").stdout
    assert "Restricted to seed 1." in text
    assert "No significance tests" in text
    assert "±" not in text.split("\n\n")[1]


def test_figures_are_written_and_latex_includes_them_by_relative_path(finished, tmp_path):
    target = tmp_path / "paper" / "table.tex"
    output = xsweep(
        *("report", "--format", "latex", "-o", str(target)),
        *("--figures", str(tmp_path / "paper" / "figures")),
    ).stdout
    assert "Wrote 1 figures" in output
    (included,) = re.findall(r"\\detokenize\{(.*?)\}", target.read_text())
    assert (target.parent / included).read_bytes().startswith(b"%PDF")


def test_cost_adds_the_hours_of_finished_and_lost_attempts(finished):
    text = xsweep("report", "--cost").stdout
    assert "Cost and gain in nDCG@10" in text
    assert re.search(r"L6 infonce +3 ", text)


def test_compare_shows_the_texts_of_the_queries_that_changed_most(finished):
    text = xsweep("compare", "L6 infonce", "first_stage", "--top", "2").stdout
    assert text.startswith("demo: L6 infonce (lists) vs. BM25 (first stage)")
    assert "5 queries: 5 better, 0 equal, 0 worse" in text
    # both seeds averaged: .65 .65 .55 .55 .55 against .1 .2 .1 .0 .1
    assert re.search(r"Largest gains\n  \+0\.550  .*q0  text of q0\n  \+0\.550  .*q3  text", text)


def test_compare_writes_every_query_to_a_file(finished, tmp_path):
    path = tmp_path / "out" / "queries.csv"
    xsweep("compare", "L6 infonce", "BM25", "-f", "csv", "-o", str(path))
    assert len(path.read_text().splitlines()) == 1 + 5


def test_compare_works_without_the_store_and_creates_none(finished, home):
    result = xsweep("--store", str(home / "elsewhere"), "compare", "L6 infonce", "BM25")
    assert "no query texts of news" in result.stderr
    assert "q0" in result.stdout
    assert not (home / "elsewhere").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["L6 infonc", "BM25"], "error: system 'L6 infonc' is not in this sweep; did you mean"),
        (["BM25", "first_stage"], "are the same system"),
        (["L6 infonce", "BM25", "--sweep", "dmo"], "no sweep 'dmo': did you mean 'demo'?"),
        (["L6 infonce", "BM25", "--collection", "new"], "did you mean 'news'?"),
        (["L6 infonce", "BM25", "-m", "AP"], "AP is not stored in this sweep, which has nDCG@10"),
        (["L6 infonce", "BM25", "-f", "html"], "unknown format 'html': use one of text"),
    ],
)
def test_a_comparison_of_something_unknown_is_exit_code_2(finished, arguments, expected):
    result = xsweep("compare", *arguments, code=2)
    assert expected in result.stderr
    assert result.stdout == ""
