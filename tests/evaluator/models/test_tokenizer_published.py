"""Folders with the files that the repositories of backbones hold: tokenizers and weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.evaluator.models.tokenizer import load_tokenizer
from xsweep.evaluator.specs import ModelSpec

TEXTS = ("What is the Quick  fox, naïve?", "an answer to the question")
PUBLISHED = {
    # google-bert/bert-base-uncased
    "bert": ("model.safetensors", {"tokenizer.json", "vocab.txt", "tokenizer_config.json"}),
    # google/electra-base-discriminator
    "electra": ("pytorch_model.bin", {"tokenizer.json", "vocab.txt", "tokenizer_config.json"}),
    # FacebookAI/roberta-base
    "roberta": (
        "model.safetensors",
        {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"},
    ),
    # answerdotai/ModernBERT-base and jhu-clsp/ettin-encoder-*
    "modernbert": (
        "model.safetensors",
        {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"},
    ),
}


def _publish(folder: Path, source: Path, weights: str, dtype: torch.dtype = torch.float32) -> None:
    """Write config and backbone weights, without a head, in a repository's form."""
    folder.mkdir(exist_ok=True)
    settings = json.loads((source / "config.json").read_text())
    for name in ("architectures", "dtype", "transformers_version", "id2label", "label2id"):
        settings.pop(name, None)
    (folder / "config.json").write_text(json.dumps(settings))
    state = load_file(source / "model.safetensors")
    kept = {name: value.to(dtype) for name, value in state.items() if "classifier" not in name}
    if weights.endswith(".bin"):
        torch.save(kept, folder / weights)
    else:
        save_file(kept, folder / weights, metadata={"format": "pt"})


def _write_tokenizer(folder: Path, tokenizer, names: set[str]) -> None:
    tokenizer.save_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [" ".join(pair) for pair in model.get("merges", [])]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(tokenizer.special_tokens_map))
    for path in folder.iterdir():
        if path.name not in names | {"config.json"} and not path.name.startswith(("model.", "py")):
            path.unlink()


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_backbone_loads_from_the_files_of_its_repository(
    family: str, make_model_folder: Callable, make_tokenizer: Callable, tmp_path: Path
) -> None:
    weights, names = PUBLISHED[family]
    _publish(tmp_path, make_model_folder(family), weights)
    _write_tokenizer(tmp_path, make_tokenizer(family), names)
    model, tokenizer = load_cross_encoder(ModelSpec(folder=str(tmp_path)), seed=1)
    assert tokenizer(*TEXTS)["input_ids"] == make_tokenizer(family)(*TEXTS)["input_ids"]
    expected, _ = load_cross_encoder(make_model_folder(family))
    found = model.base_model.state_dict()
    for name, value in expected.base_model.state_dict().items():
        assert torch.equal(found[name], value), name


def test_minilm_loads_from_a_vocabulary_alone_and_its_missing_case_setting_is_repaired(
    make_model_folder: Callable, make_tokenizer: Callable, tmp_path: Path
) -> None:
    # microsoft/MiniLM-L12-H384-uncased: no tokenizer.json, no do_lower_case
    _publish(tmp_path, make_model_folder("bert"), "pytorch_model.bin")
    _write_tokenizer(tmp_path, make_tokenizer("bert"), {"vocab.txt"})
    _, tokenizer = load_cross_encoder(ModelSpec(folder=str(tmp_path)), seed=1)
    assert tokenizer(*TEXTS)["input_ids"] == make_tokenizer("bert")(*TEXTS)["input_ids"]


def test_deberta_v3_loads_from_a_sentencepiece_model_and_fp16_weights(
    make_model_folder: Callable, tmp_path: Path
) -> None:
    # microsoft/deberta-v3-base: spm.model, no tokenizer.json; pytorch_model.bin in fp16
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(["What is the quick fox, an answer to the question?"] * 50))
    folder = tmp_path / "published"
    _publish(folder, make_model_folder("deberta"), "pytorch_model.bin", torch.float16)
    ids = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    pieces = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]"}
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spm"),
        vocab_size=26,
        unk_piece="[UNK]",
        minloglevel=2,
        **ids,
        **pieces,
    )
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    tokenizer = load_tokenizer(ModelSpec(folder=str(folder)))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    first, second = (reference.encode(text) for text in TEXTS)
    assert tokenizer(*TEXTS)["input_ids"] == [1, *first, 2, *second, 2]
    model, _ = load_cross_encoder(ModelSpec(folder=str(folder)), seed=1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected, _ = load_cross_encoder(make_model_folder("deberta"))
    found = model.base_model.state_dict()
    for name, value in expected.base_model.state_dict().items():
        assert torch.equal(found[name], value.half().float()), name
