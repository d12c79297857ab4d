"""Models on a Hugging Face Hub: names, cards, and what a reader downloads."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from finished import run_all, submit_small
from hub import Hub
from huggingface_hub import constants
from tiny import write_backbone
from typer.testing import CliRunner, Result

from xsweep.db.engine import connect
from xsweep.db.results import load_cells
from xsweep.evaluator.specs import IrdsSpec
from xsweep.orchestrator.cli import app
from xsweep.orchestrator.storage.archive import push_models
from xsweep.trainer.card import Model, Score, collective_card, metadata, model_card, model_names
from xsweep.trainer.specs import TrainSpec

TOKEN = "hf_5ec2e75ec2e7"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # HF_ENDPOINT, before the first import
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    hub.close()


@pytest.fixture
def done(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished sweep of three models."""
    engine = submit_small(home, ("seeds: [1, 2]", "seeds: [1]"))
    run_all(engine, home / "store")
    monkeypatch.setenv("XSWEEP_DB", str(engine.url))
    return home


def export(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["export", "small", *arguments])
    assert result.exit_code == code, result.output
    assert TOKEN not in result.output
    return result


def test_a_sweeps_models_are_pushed_under_names_for_people_with_full_cards(hub, done, tmp_path):
    given = ("--license", "apache-2.0", "--language", "en", "--private")
    output = export("--push-to-hub", "org/small", *given).output
    assert f"{hub.url}/org/small/commit/" in output
    assert [path.name for path in tmp_path.iterdir()] == ["home"], "no archive was asked for"
    files = hub.files["org/small"]
    names = {"L6_infonce_s1", "L3_infonce_s1", "L3_margin_mse_s1"}
    assert {name.split("/")[0] for name in files} == {"README.md", *names}
    assert hub.private == {"org/small": True}
    engine = connect(f"sqlite:///{done}/.xsweep/xsweep.db")
    cells = load_cells(engine, "small")
    [bm25] = [c.means["nDCG@10"] for c in cells if c.labels["system"] == "first_stage"]
    for cell in cells:
        if cell.labels["system"] == "run":
            name = f"{cell.labels['backbone']}_{cell.labels['objective']}_s1"
            identity = cell.parents_summary["run"].identity
            assert files[f"{name}/model.safetensors"] == identity.encode()
            card = hub.card("org/small", f"{name}/README.md")
            [result] = card.eval_results
            assert (card.model_name, card.license, card.language) == (name, "apache-2.0", ["en"])
            assert result.metric_value == round(cell.means["nDCG@10"], 4)
            assert (result.metric_name, result.dataset_name) == ("nDCG@10", "apidocs/test")
            assert result.dataset_config == "BM25, first 20"
            text = files[f"{name}/README.md"].decode()
            assert f"| apidocs/test | BM25, first 20 | {cell.means['nDCG@10']:.4f} |" in text
            assert f"| apidocs/test | not re-ranked: BM25, first 20 | {bm25:.4f} |" in text
            assert "best nDCG@10 (0.5000) on apidocs/validation" in text
            assert "No test collection chose anything." in text
    _, metadata, text = files["README.md"].decode().split("---\n", 2)
    index = yaml.safe_load(metadata)["model-index"]
    assert {each["name"] for each in index} == names
    assert files["README.md"].decode() in hub.validated, "the Hub has checked the card"


def test_one_model_is_pushed_to_the_root_and_an_export_may_be_kept(hub, done, tmp_path):
    chosen = ("--run", "train L6 infonce bm25 s1", "-o", str(tmp_path / "kept.tar.gz"))
    result = export("--push-to-hub", "org/one", *chosen)
    assert "the cards name no licence: give --license" in result.output
    assert set(hub.files["org/one"]) == {"README.md", "model.safetensors"}
    assert 'CrossEncoder("org/one")' in hub.files["org/one"]["README.md"].decode()
    assert (tmp_path / "kept.tar.gz").is_file()


def spec() -> TrainSpec:
    return TrainSpec.model_validate(
        {
            "backbone": {"id": "microsoft/MiniLM-L12-H384-uncased"},
            "objective": {"name": "infonce"},
            "teacher": {"signal": "labels", "source": {"type": "candidates"}, "negatives": 1},
            "collection": {"source": "irds", "name": "ms", "id": "msmarco-passage/train/judged"},
            "optimisation": {"steps": 10, "lr": 1e-5, "batch_queries": 2},
            "seed": 1,
        }
    )


def test_a_base_model_and_data_of_ir_datasets_are_linked_on_the_hub():
    tested = IrdsSpec(name="scifact", id="beir/scifact/test")
    scores = [
        Score(collection=tested, first_stage=name, depth=100, measure="RR@10", value=0.123456)
        for name in ("BM25", "SPLADE")
    ]
    model = Model(spec=spec(), summary={}, provenance={}, name="m", scores=tuple(scores))
    found = metadata(model)
    assert found.base_model == "microsoft/MiniLM-L12-H384-uncased"
    assert found.datasets == ["irds/msmarco-passage_train_judged"]
    assert "loss:infonce" in found.tags
    bm25, splade = yaml.safe_load(found.to_yaml())["model-index"][0]["results"]
    assert bm25["dataset"] == {
        "name": "scifact",
        "type": "irds/beir_scifact_test",
        "config": "BM25, first 100",
    }
    assert splade["metrics"] == [{"type": "rr@10", "name": "RR@10", "value": 0.1235}]


@pytest.mark.parametrize(
    ("repository", "token", "code", "message"),
    [
        ("not a name", TOKEN, 2, "--push-to-hub not a name: Repo id must"),
        ("org/small", "hf_wrong", 3, "log in with `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_a_push_that_fails_says_what_to_do(
    hub, done, monkeypatch, repository, token, code, message
):
    monkeypatch.setenv("HF_TOKEN", token)
    assert message in export("--push-to-hub", repository, "--license", "mit", code=code).output
    assert hub.files.get("org/small", {}) == {}


def test_models_have_longer_names_only_where_two_would_be_the_same():
    same = {"backbone": "Mini LM/6", "seed": 12}
    trained = {"1": ("bce", "a"), "2": ("mse", "a"), "3": ("mse", "b"), "4": ("mse", "b")}
    labels = {
        digit * 64: {**same, "objective": objective, "teacher": teacher}
        for digit, (objective, teacher) in trained.items()
    }
    assert model_names(labels) == {
        "1" * 64: "Mini-LM-6_bce_s12",
        "2" * 64: "Mini-LM-6_mse_a_s12",
        "3" * 64: "Mini-LM-6_mse_b_s12_33333333",
        "4" * 64: "Mini-LM-6_mse_b_s12_44444444",
    }


@pytest.mark.slow(9)
def test_the_lines_of_a_card_load_the_model_from_the_hub(hub, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    backbone, summary = write_backbone(tmp_path / "backbone"), {"steps": 10, "pairs": 40}
    summary |= {"final_loss": 0.1, "pairs_per_s": 9.0, "padding_waste": 0.0}
    provenance = {"xsweep": "1", "python": "3", "source": None, "started": "now", "packages": {}}
    provenance |= {"hardware": {"cpu": "c", "gpus": []}}
    made = {"spec": spec(), "summary": summary, "provenance": provenance}
    program, models = [], []
    for name, repository in (("A_bce_s1", "org/one"), ("B_bce_s1", "org/both")):
        folder = tmp_path / "models" / name
        classifier = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1)
        classifier.save_pretrained(folder)
        AutoTokenizer.from_pretrained(backbone).save_pretrained(folder)
        models.append(Model(**made, name=name, address=repository))
        (folder / "README.md").write_text(model_card(models[-1]))
        if len(models) == 2:
            card = collective_card("both", [replace(each, address=repository) for each in models])
            (tmp_path / "models" / "README.md").write_text(card)
        push_models(tmp_path, repository)
        _, lines, _ = hub.files[repository]["README.md"].decode().split("```")[:3]
        program += [lines.removeprefix("python"), 'print(len(model.predict([("w1", "w2 w3")])))']
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)],
        env=environment | {"HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["1", "1"], done.stderr
