"""Decoders as rerankers, with a new head at the last token or that of a prompt's answers."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from plain_engine import PlainBackward
from safetensors.torch import load_file
from tiny import WORDS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from xsweep.errors import ConfigError, Stopped
from xsweep.evaluator.data.readers import read_texts
from xsweep.evaluator.models.causal_reranker import (
    PromptEncoder,
    build_prompt_scorer,
    load_answering,
    load_causal_reranker,
)
from xsweep.evaluator.models.cross_encoder import load_cross_encoder, quiet_loading
from xsweep.evaluator.models.tokenizer import tokenize
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.scoring import score_pairs
from xsweep.evaluator.specs import ModelSpec, PromptSpec, ScoringSpec
from xsweep.trainer.forward import Scorer, attention, needs_ids
from xsweep.trainer.gradients import Budgets, Gradients
from xsweep.trainer.specs import ObjectiveSpec
from xsweep.trainer.train import run_job

PROMPT = {
    "template": ["<turn>Judge.\n", "Query: {query}\nDocument: {document}", "<turn>\nRelevant:"],
    "answers": [" yes", " no"],
}
FEW_PASSES = {"micro_batch_tokens": 1200, "forward_tokens": 600}
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
CONFIGS: dict[str, dict] = {
    "qwen3": SHAPE | {"attention_dropout": 0.1, "tie_word_embeddings": True},
    "llama": SHAPE | {"attention_dropout": 0.1},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 160}
    | {"resid_pdrop": 0, "embd_pdrop": 0},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    "gemma2": SHAPE | {"final_logit_softcapping": 2.0},
}


def write_decoder(folder: Path, family: str) -> Path:
    """A random language model with a tokenizer that pads at the beginning, as published ones do."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        special_tokens=["<end>", "<begin>", "<turn>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f" {word}" for word in WORDS] + [" yes no Query: Document: Relevant: Judge"] * 9
    backend.train_from_iterator(texts, trainer)
    names = {"eos_token": "<end>", "padding_side": "left"}
    if family == "llama":  # it begins every input with a token of its own, and pads with another
        backend.post_processor = processors.TemplateProcessing(
            single="<begin> $A", pair="<begin> $A <begin> $B", special_tokens=[("<begin>", 1)]
        )
        names |= {"bos_token": "<begin>", "pad_token": "<end>"}
    if family == "t5":  # the end of its input gives the score
        backend.post_processor = processors.TemplateProcessing(
            single="$A <end>", pair="$A <end> $B <end>", special_tokens=[("<end>", 0)]
        )
        names |= {"pad_token": "<begin>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        initializer_range=0.2,
        **{"eos_token_id": 0, "decoder_start_token_id": 1, **CONFIGS[family]},
    )
    torch.manual_seed(3)
    kind = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    kind.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(
    scope="module",
    params=[("qwen3", True), ("llama", False), ("gpt2", True)],
    ids=["qwen3-prompt", "llama-head", "gpt2-prompt"],
)
def decoder(request, world, tmp_path_factory):
    home = tmp_path_factory.mktemp("decoder")
    family, asked = request.param
    model = {"folder": str(write_decoder(home / "model", family))}
    return type(world)(home, model | ({"prompt": PROMPT} if asked else {}))


def texts_of(world) -> list[tuple[str, str]]:
    """Queries with documents of unequal length, within the cuts of the training."""
    queries, documents = (
        dict(read_texts(Path(world.collection[part]["path"]))) for part in ("queries", "documents")
    )
    return [(queries[f"q{n}"], " ".join(documents[f"d{n + 1}"].split()[: 3 + n])) for n in range(8)]


@pytest.mark.slow(3)
def test_a_decoder_overfits_resumes_to_the_bit_and_its_export_scores_alike(decoder, tmp_path):
    from sentence_transformers import CrossEncoder

    engine = "deepspeed" if decoder.model.get("prompt") else "plain"
    settings = {"steps": 28, "lr": 6e-3, "engine": engine, **FEW_PASSES}
    spec = decoder.spec("infonce", **settings) | {"validation": None}
    run_job("train", spec, decoder.inputs, tmp_path / "whole")

    def stop(done, total, **_):
        if done == 10:
            raise Stopped("asked to stop")

    with pytest.raises(Stopped):
        run_job("train", spec, decoder.inputs, tmp_path / "first", report=stop)
    resumed = tmp_path / "second"
    run_job("train", spec, decoder.inputs, resumed, resume_from=[tmp_path / "first"])
    expected, found = (
        load_file(out / "model" / "model.safetensors") for out in (tmp_path / "whole", resumed)
    )
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())
    lines = (resumed / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])

    folder, pairs = resumed / "model", texts_of(decoder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        alone = [plain(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in pairs]
    assert np.std(alone) > 1e-2
    model, loaded = load_cross_encoder(folder)
    sides = [tokenize(loaded, [pair[side] for pair in pairs], 90) for side in (0, 1)]
    settings = ScoringSpec(query_tokens=90, document_tokens=90, batch_tokens=400)
    scored = score_pairs(model, PairEncoder(loaded), list(zip(*sides, strict=True)), settings)
    np.testing.assert_allclose(scored.scores, alone, rtol=1e-5, atol=1e-5)
    predicted = CrossEncoder(str(folder)).predict(pairs, batch_size=4)
    np.testing.assert_allclose(predicted, alone, rtol=1e-5, atol=1e-5)


def test_gradients_of_a_decoder_equal_those_of_pairs_one_at_a_time(decoder, tmp_path):
    model, tokenizer, assembler, samples = decoder.prepared(
        micro_batch_tokens=300, forward_tokens=150
    )
    encoder = PairEncoder(tokenizer)
    by_ids = needs_ids(model, encoder, packed=False)
    scorer = Scorer(model, bf16=False, by_ids=by_ids)
    spec = SimpleNamespace(objective=ObjectiveSpec(name="mse"), seed=3)
    with attention(model, "eager"), quiet_loading():
        engine = PlainBackward(scorer)
        Gradients(spec, engine, scorer, assembler, Budgets(300, tmp_path)).add(samples, step=4)
    assert engine.passes > 1
    found = {name: weights.grad.clone() for name, weights in model.named_parameters()}
    model.zero_grad()
    pairs = [
        (s.query_id, doc, t) for s in samples for doc, t in zip(s.doc_ids, s.targets_D, strict=True)
    ]
    for query_id, doc_id, target in pairs:
        sides = assembler.queries[query_id], assembler.documents[doc_id]
        ids = torch.from_numpy(encoder.encode(*sides, 4, 24).input_ids)[None]
        with quiet_loading():
            score = model(input_ids=ids).logits[0, 0]
        ((score - float(target)) ** 2 / len(pairs)).backward()
    for name, weights in model.named_parameters():
        torch.testing.assert_close(found[name], weights.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
def test_a_head_begins_with_the_scores_of_the_causal_reranker(family, tmp_path):
    folder, prompt = write_decoder(tmp_path, family), PromptSpec.model_validate(PROMPT)
    model, tokenizer = load_answering(ModelSpec(folder=str(folder), prompt=prompt), seed=1)
    causal, plain = load_causal_reranker(ModelSpec(folder=str(folder)), prompt, torch.float32)
    asked = [("w1 w2", "w3 w4 w5"), ("w9", "w8 w7 w6 w5 w4 w3 w2 w1"), ("w7 w7 w7", "w2")]
    encoder = PromptEncoder(plain, prompt, causal)
    prompts = encoder.encode_all(asked, 9, 9)
    for pair, expected in zip(asked, prompts, strict=True):
        assert tokenizer(*pair)["input_ids"] == expected.input_ids.tolist()
    with torch.inference_mode():
        theirs = build_prompt_scorer(causal, encoder)(encoder.collate(prompts))
        ours = model(**tokenizer(*zip(*asked, strict=True), padding=True, return_tensors="pt"))
    torch.testing.assert_close(ours.logits[:, 0], theirs, rtol=1e-5, atol=1e-5)
    assert theirs.std() > 1e-2


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("gemma2", {}, "this gemma2 model's logits are not those of a linear head"),
        ("t5", {}, "this t5 model's logits are not those of a linear head"),
        ("qwen3", {"template": "{document} or {query}"}, "has {query} before {document}"),
        ("qwen3", {"answers": ["perhaps"]}, "the answer 'perhaps' is . tokens, it must be one"),
    ],
)
def test_a_prompt_that_gives_no_head_is_refused(family, change, message, tmp_path):
    prompt = PromptSpec.model_validate(PROMPT | change)
    spec = ModelSpec(folder=str(write_decoder(tmp_path, family)), prompt=prompt)
    with pytest.raises(ConfigError, match=message):
        load_answering(spec, seed=1)


LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}


@pytest.mark.slow(3)
def test_adapters_resume_to_the_bit_and_are_merged_into_the_export(decoder, tmp_path):
    zero = {"engine": "deepspeed", "zero_stage": 2, "gradient_checkpointing": True}
    engine = zero if decoder.model.get("prompt") else {}
    spec = decoder.spec("infonce", lr=3e-3, lora=LORA, **engine, **FEW_PASSES)
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    run_job("train", spec, decoder.inputs, whole)

    def stop(done, total, **_):
        if done == 4:
            raise Stopped("asked to stop")

    with pytest.raises(Stopped):
        run_job("train", spec, decoder.inputs, first, report=stop)
    (kept,) = first.glob("checkpoints/step-4/weights.safetensors")
    assert {"lora" in name or "score" in name for name in load_file(kept)} == {True}
    run_job("train", spec, decoder.inputs, second, resume_from=[first])
    expected, found = (load_file(out / "model" / "model.safetensors") for out in (whole, second))
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())

    # `peft` itself puts the adapters on the same backbone
    base = AutoModelForSequenceClassification.from_pretrained(decoder.backbone, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(second / "model")
    base.config.pad_token_id = tokenizer.pad_token_id
    adapted = peft.PeftModel.from_pretrained(base, str(second / "model" / "adapter")).eval()
    merged = AutoModelForSequenceClassification.from_pretrained(second / "model").eval()
    inputs = tokenizer(*zip(*texts_of(decoder), strict=True), padding=True, return_tensors="pt")
    with torch.inference_mode():
        theirs, ours = (each(**inputs).logits for each in (adapted, merged))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    frozen = AutoModelForCausalLM.from_pretrained(decoder.backbone).get_input_embeddings().weight
    assert torch.equal(merged.get_input_embeddings().weight, frozen)
    assert not any("lora" in name for name in found)
    card = (second / "model" / "README.md").read_text()
    assert "| adapters | LoRA, rank 4, alpha 8 |" in card
    assert ("| prompt | for the answer ' yes' |" in card) == ("prompt" in decoder.model)


@pytest.mark.parametrize(
    ("targets", "message"), [(["nothing"], "lora: .*target"), ([], "this is a bert model")]
)
def test_adapters_of_no_layer_or_of_an_encoder_are_refused(
    world, decoder, targets, message, tmp_path
):
    place = decoder if targets else world
    spec = place.spec("infonce", lora={"targets": targets})
    with pytest.raises(ConfigError, match=message):
        run_job("train", spec, place.inputs, tmp_path)
