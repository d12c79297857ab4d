"""A model's files rule out only what the code that loads the model refuses."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from xsweep.errors import ConfigError, DataError
from xsweep.evaluator.models.bi_encoder import load_bi_encoder
from xsweep.evaluator.models.causal_reranker import load_answering, load_causal_reranker
from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.evaluator.models.files import configs, refusal
from xsweep.evaluator.models.listwise_llm import ask_model
from xsweep.evaluator.models.splade import load_splade
from xsweep.evaluator.specs import ModelSpec, PromptSpec
from xsweep.evaluator.varlen.encoders import runs_unpadded
from xsweep.orchestrator.rehearsal.models import Head, write_model
from xsweep.trainer.specs import OptimisationSpec, TrainSpec
from xsweep.trainer.train import add_adapters

PROMPT = PromptSpec(template=("{query} {document} answer:",), answers=("yes", "no"))
TARGETS = ("nothing",)


def backbone(spec: ModelSpec) -> Any:
    return (load_answering if spec.prompt else load_cross_encoder)(spec, 1)[0]


def adapted(spec: ModelSpec, targets: tuple[str, ...]) -> None:
    values: Any = {"lora": {"targets": targets}, "steps": 1, "lr": 1e-3, "batch_queries": 1}
    given = TrainSpec.model_construct(
        backbone=spec, optimisation=OptimisationSpec(**values), seed=1
    )
    add_adapters(backbone(spec), given)


LOADERS: dict[str, Callable[[ModelSpec], Any]] = {
    "backbone": backbone,
    "cross_encoder": load_cross_encoder,
    "causal_reranker": lambda spec: load_causal_reranker(spec, PROMPT, torch.float32),
    "listwise_llm": lambda spec: ask_model(spec, "first", torch.float32, torch.device("cpu")),
    "bi_encoder": load_bi_encoder,
    "dense": load_bi_encoder,
    "splade": load_splade,
}
POOL = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "pool"}]
SPARSE = [{"type": "x.MLMTransformer", "path": ""}, {"type": "x.SpladePooling", "path": "pool"}]


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., ModelSpec]:
    def write(family: str, head: Head, **files: Any) -> ModelSpec:
        write_model(tmp_path, "m", family=family, head=head)
        (tmp_path / "pool").mkdir()
        names = {"modules": "modules.json", "pool": "pool/config.json"}
        names |= {"config": "config.json", "tokenizer": "tokenizer_config.json"}
        for key, content in files.items():
            path = tmp_path / names[key]
            if key in ("config", "tokenizer"):
                content = json.loads(path.read_text()) | content
            path.write_text(json.dumps(content))
        return ModelSpec(folder=str(tmp_path))

    return write


@pytest.mark.parametrize(
    ("family", "head", "use", "message", "files"),
    [
        ("bert", "none", "cross_encoder", "a BertModel, without a cross_encoder's head", {}),
        ("qwen", "next", "cross_encoder", "a Qwen3ForCausalLM, without", {}),
        ("bert", "none", "causal_reranker", "a bert model, which gives no next token", {}),
        ("distilbert", "score", "listwise_llm", "a distilbert model, which gives no next", {}),
        (
            *("bert", "none", "bi_encoder", r"pooling \['lasttoken'\] is not supported"),
            {"modules": POOL, "pool": {"pooling_mode_lasttoken": True}},
        ),
        (
            *("bert", "none", "dense", "a module Dense are not supported"),
            {"modules": [*POOL, {"type": "x.Dense", "path": "d"}]},
        ),
        (
            *("bert", "masked", "splade", "SpladePooling .*sum.* is not supported"),
            {"modules": SPARSE, "pool": {"pooling_strategy": "sum"}},
        ),
    ],
)
def test_a_model_that_no_job_could_load_is_refused(
    model: Callable[..., ModelSpec], family: str, head: str, use: str, message: str, files: dict
) -> None:
    spec = model(family, head, **files)
    with pytest.raises((ConfigError, DataError)):
        LOADERS[use](spec)
    setting, reason = refusal(spec, use) or ("", "nothing")
    assert setting == ""
    assert re.search(message, reason), reason


def test_outputs_and_a_chat_template_are_counted(model: Callable[..., ModelSpec]) -> None:
    spec = model("bert", "score", config={"id2label": {"0": "no", "1": "perhaps", "2": "yes"}})
    assert "has 3 outputs, a cross_encoder has one" in str(refusal(spec, "cross_encoder"))


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "deberta"])
def test_settings_of_an_encoder_are_refused_as_the_training_refuses_them(
    model: Callable[..., ModelSpec], family: str
) -> None:
    spec = model(family, "none")
    loaded = backbone(spec)
    tries: dict[str, tuple[ModelSpec, dict[str, Any], Callable[[], Any]]] = {
        "lora": (spec, {"targets": ()}, lambda: adapted(spec, ())),
        "layout": (spec, {"layout": "unpadded"}, lambda: runs_unpadded(loaded, "unpadded")),
    }
    for layers in (2, 3):
        cut = spec.model_copy(update={"layers": layers})
        tries[f"layers {layers}"] = cut, {}, partial(backbone, cut)
    asked = spec.model_copy(update={"prompt": PROMPT})
    tries["prompt"] = asked, {}, partial(backbone, asked)
    for name, (given, settings, attempt) in tries.items():
        refused = refusal(given, "backbone", **settings)
        try:
            attempt()
        except (ConfigError, DataError):
            assert refused is not None, name
            assert refused[0] == name.split()[0]
        else:
            assert refused is None, name


@pytest.mark.parametrize("targets", [(), ("q_proj",), ("self_attn.q_proj", "nothing"), TARGETS])
def test_adapters_of_a_decoder_need_one_of_its_layers(
    model: Callable[..., ModelSpec], targets: tuple[str, ...]
) -> None:
    spec = model("qwen", "next")
    refused = refusal(spec, "backbone", targets=targets)
    if targets != TARGETS:
        adapted(spec, targets)
        assert refused is None
        return
    with pytest.raises(ConfigError, match="lora: "):
        adapted(spec, targets)
    assert refused is not None
    assert "has no layer nothing: known are" in refused[1]
    assert "q_proj" in refused[1]


def test_no_use_of_a_fitting_model_is_refused(model: Callable[..., ModelSpec]) -> None:
    spec = model("bert", "score", modules=POOL, pool={"pooling_mode_cls_token": True})
    assert [refusal(spec, use, "unpadded") for use in ("backbone", "cross_encoder", "dense")] == [
        None
    ] * 3


def test_a_model_of_the_hub_is_known_once_its_files_are_here(
    model: Callable[..., ModelSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(model("bert", "none").folder or "")
    spec = ModelSpec(id="org/name", layers=3)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert refusal(spec, "backbone") is None
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c" * 40)
    (repository / "snapshots" / ("c" * 40)).symlink_to(folder)
    assert configs({"id": "org/name"}) == [repository / "snapshots" / ("c" * 40) / "config.json"]
    assert refusal(spec, "backbone") == ("layers", "layers is 3, org/name has 2: lower it")
    assert refusal(spec.model_copy(update={"revision": "d" * 40}), "backbone") is None
