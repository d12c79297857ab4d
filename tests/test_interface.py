"""`import xsweep` in a notebook: frames with the stored numbers, and nothing heavy loaded."""

import gzip
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from finished_sweep import QUERIES, SCORES, submit, work
from scipy.stats import ttest_rel
from tiny import write_study
from transformers import BertConfig, BertForSequenceClassification
from typer.testing import CliRunner

import xsweep
from xsweep.db.engine import connect
from xsweep.db.status import list_jobs
from xsweep.orchestrator.cli import app

MEASURED = ("evaluate BM25", "evaluate L6 s1", "evaluate L6 s2")


@pytest.fixture
def finished(home: Path) -> Path:
    """A home with the sweep `demo`, whose attempts' folders are still empty."""
    engine = connect(f"sqlite:///{home / 'xsweep.db'}", create=True)
    submit(engine)
    work(engine, until=8)
    engine.dispose()
    return home


def write(home: Path, folder: str, name: str, text: str) -> None:
    path = home / "store" / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


def test_results_have_a_row_per_run_collection_and_measure(finished):
    found = xsweep.results("demo")
    assert found[["name", "collection", "measure", "queries"]].to_numpy().tolist() == [
        ["BM25 (first stage)", "news", "nDCG@10", 5],
        ["L6 infonce (lists)", "news", "nDCG@10", 5],
        ["L6 infonce (lists)", "news", "nDCG@10", 5],
    ]
    assert found["value"].tolist() == pytest.approx([0.1, 0.54, 0.64])
    assert found["seed"].tolist() == [pd.NA, 1, 2]
    assert found["backbone"].tolist()[1:] == ["L6", "L6"]


def test_values_of_each_query_are_the_stored_ones(finished):
    found = xsweep.per_query(measure="ndcg@10")
    assert found["query_id"].tolist() == QUERIES * 3
    assert found["value"].tolist() == [value for name in MEASURED for value in SCORES[name]]


def test_two_rows_are_compared_by_a_paired_t_test(finished):
    (found,) = xsweep.compare("L6 infonce", "first_stage").to_dict("records")
    mean = [(a + b) / 2 for a, b in zip(*(SCORES[name] for name in MEASURED[1:]), strict=True)]
    assert found["difference"] == pytest.approx(0.49)
    assert found["effect"] == pytest.approx(0.49 / 0.003**0.5)  # variance 0.012 / 4
    assert found["p"] == pytest.approx(ttest_rel(mean, SCORES["evaluate BM25"]).pvalue)
    assert (found["wins"], found["losses"]) == (5, 0)
    assert found["low"] < 0.49 < found["high"]


def test_a_report_is_that_of_the_command_line_in_every_format(finished):
    found = xsweep.report("demo", effects=True, digits=4)
    for format in ("text", "latex", "markdown", "html"):
        done = CliRunner().invoke(app, f"report demo --effects --digits 4 -f {format}".split())
        assert found.render(format) == done.output
    assert str(found) == found.render("text")
    assert found.to_latex(standalone=True).startswith("\\documentclass")
    assert found._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')


def test_jobs_are_counted_by_sweep_kind_and_state(finished):
    found = xsweep.status().set_index(["sweep", "kind", "state"])["jobs"]
    assert found["demo", "evaluate", "done"] == 3
    assert found["demo", "evaluate", "failed"] == 1
    assert found["demo", "train", "done"] == 3


def test_a_run_is_ranked_by_score(finished):
    write(finished, "evaluate L6 s1", "run.trec.gz", "q0 Q0 a 1 0.5 x\nq0 Q0 b 2 0.75 x\n")
    found = xsweep.run("L6 s1")
    assert found.to_numpy().tolist() == [["q0", "b", 1, 0.75], ["q0", "a", 2, 0.5]]
    job = xsweep.results().query("seed == 1")["job_id"].item()
    assert xsweep.run(job).equals(found)


def test_curves_have_a_row_per_figure_and_step_that_was_written(finished):
    lines = '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25, "validation": 0.9}\n'
    for seed in (1, 2, 3):
        write(finished, f"train s{seed}", "metrics.jsonl", lines)
    found = xsweep.curves().query("seed == 2")
    assert found.dtypes[["seed", "step", "value"]].tolist() == ["int64", "int64", "float64"]
    assert found[["figure", "step", "value"]].to_numpy().tolist() == [
        ["loss", 1, 0.5],
        ["loss", 2, 0.25],
        ["validation", 2, 0.9],
    ]


@pytest.mark.parametrize("library", ["transformers", "sentence-transformers"])
def test_a_trained_model_is_loaded_with_its_weights(finished, library):
    torch.manual_seed(1)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=8, num_labels=1))
    model.save_pretrained(finished / "store" / "train s1" / "model")
    if library == "sentence-transformers":
        from sentence_transformers import CrossEncoder

        (finished / "store/train s1/model/vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
        loaded = xsweep.load_model("s1", library)
        assert isinstance(loaded, CrossEncoder)
        loaded = loaded[0].model if hasattr(loaded, "__getitem__") else loaded.model
    else:
        loaded = xsweep.load_model("s1")
        assert not loaded.training
    assert torch.equal(loaded.classifier.weight.cpu(), model.classifier.weight)


def test_a_sweep_without_results_gives_empty_frames(home):
    submit(connect(f"sqlite:///{home / 'xsweep.db'}", create=True))
    for found in (xsweep.results(), xsweep.per_query(), xsweep.curves()):
        assert found.empty


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: xsweep.results("dmo"), "did you mean 'demo'"),
        (lambda: xsweep.per_query(measure="nDGC@10"), "unknown measure"),
        (lambda: xsweep.run("L6 s3"), r"\(evaluate, failed\): a finished evaluate job is needed"),
        (lambda: xsweep.run("train s1"), r"\(train, done\): a finished evaluate job is needed"),
        (lambda: xsweep.load_model("s9"), "no job 's9'"),
        (lambda: xsweep.load_model("s1", "keras"), "library 'keras': use one of transformers,"),
        (lambda: xsweep.compare("L6 infonce", "L7"), "'L7' is not in this sweep"),
        (lambda: xsweep.report(digits=11), "use 1 to 10"),
    ],
)
def test_mistakes_are_answered_as_on_the_command_line(finished, call, expected):
    with pytest.raises(xsweep.ConfigError, match=expected):
        call()


def test_a_grid_is_stored_once(home):
    write_study(home.parent)
    first = xsweep.submit("tiny.yaml", ["training.steps=3"], start=False)
    assert (first.new, first.total) == (9, 9)
    again = xsweep.submit(home.parent / "tiny.yaml", ["training.steps=3"], start=False)
    assert (again.new, again.total) == (0, 9)
    assert len(list_jobs(connect(f"sqlite:///{home / 'xsweep.db'}"))) == 9
    with pytest.raises(xsweep.ConfigError, match="unknown key 'step'"):
        xsweep.submit("tiny.yaml", ["training.step=3"], start=False)


def test_reading_results_loads_neither_torch_nor_ray(finished):
    lines = (
        "import sys, xsweep",
        "xsweep.results(), xsweep.per_query(), xsweep.status()",
        "xsweep.report().to_latex(), xsweep.compare('L6 infonce', 'first_stage')",
        "print(sorted({'torch', 'ray', 'transformers', 'typer'} & sys.modules.keys()))",
    )
    done = subprocess.run(
        [sys.executable, "-c", "; ".join(lines)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
