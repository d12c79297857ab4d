"""Every family that transformers offers for sequence classification, as a tiny random model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as FAMILIES,
)

from xsweep.errors import ConfigError, DataError
from xsweep.evaluator.models.cross_encoder import load_cross_encoder, quiet_loading
from xsweep.evaluator.models.tokenizer import tokenize
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.scoring import score_pairs
from xsweep.evaluator.specs import ScoringSpec
from xsweep.trainer.forward import Scorer, attention, needs_ids

pytestmark = pytest.mark.slow(0.1)

BOS, PAD, EOS = 0, 1, 2
SMALL = {
    **dict.fromkeys(("hidden_size", "embedding_size", "d_model", "n_embd", "dim", "emb_dim"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff", "hidden_dim", "ffn_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "dff"), 48),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "kv_lora_rank", "q_lora_rank", "v_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 130),
    # Scores hardly differ at the default of 0.02; at 0.3 they spread over about one unit.
    **dict.fromkeys(("initializer_range", "init_std", "embed_init_std"), 0.3),
    **{"vocab_size": 300, "word_embed_proj_dim": 32, "n_group": 1, "topk_group": 1},
}
LAYER_TYPES = ["linear_attention", "full_attention"]
GEMMA = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
GEMMA |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
GEMMA |= {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
OWN: dict[str, dict[str, Any]] = {
    "axk1": {"head_dim": 8},
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * 2,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    },
    "deepseek_v3": {"head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "jamba": {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 2},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 8},
    "mobilebert": {"initializer_range": 0.1},
    "modernbert-decoder": {"pad_token_id": PAD},
    "perceiver": {"d_latents": 256},
    "qwen3_5_text": {"layer_types": LAYER_TYPES},
    "qwen3_next": {"layer_types": LAYER_TYPES},
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20},
    "t5gemma": {"encoder": GEMMA, "decoder": GEMMA},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        **{"n_mamba_heads": 2, "mamba_dt_rank": 4, "attention_head_dim": 32},
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8, "n_mamba_heads": 2},
}
ENCODERS = """
albert bert big_bird camembert data2vec-text deberta deberta-v2 distilbert electra ernie esm esmc
eurobert flaubert gte ibert jina_embeddings_v3 layoutlm lilt longformer luke markuplm megatron-bert
mobilebert modernbert mpnet nomic_bert rembert roberta roberta-prelayernorm roc_bert roformer
squeezebert tapas ultrabert xlm xlm-roberta xlm-roberta-xl xmod
"""
ENCODER_DECODERS = "bart bigbird_pegasus mbart mt5 mvp plbart t5 umt5"
DECODERS = """
arcee axk1 axk2 biogpt bloom cohere_compass_text ctrl deepseek_v2 deepseek_v3 diffllama doge exaone4
falcon gemma gemma2 gemma3_text glm glm4 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj
helium hunyuan_v1_dense hunyuan_v1_moe jamba jetmoe llama minicpm3 minimax ministral ministral3
mistral mistral4 mixtral modernbert-decoder mpt nemotron olmo olmo2 olmo3 openai-gpt opt persimmon
phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_5_text qwen3_moe qwen3_next seed_oss smollm3 stablelm
starcoder2 zamba zamba2
"""
HOLD = f"{ENCODERS} {ENCODER_DECODERS} {DECODERS}"
DEPEND_ON_THE_BATCH = "canine convbert fnet funnel nystromformer perceiver t5gemma xlnet yoso"
UNTESTED = "gemma3 layoutlmv2 layoutlmv3 modernvbert qwen3_5 reformer t5gemma2 ultravbert"
"""Models of images too, whose configurations do not get tiny, and Reformer, which is refused.
Loading probes the others as well."""


def make_tokenizer(template: str | None, pad: bool = True) -> PreTrainedTokenizerFast:
    """A byte tokenizer, `<s> q </s> d </s>` or another template; None puts nothing around."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["where the river flows north to the sea"] * 4, trainer)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair=template, special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>" if pad else None,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_config(family: str, pad_id: int | None = PAD) -> PreTrainedConfig:
    known = set(CONFIG_MAPPING[family]().to_dict())
    small = {name: value for name, value in SMALL.items() if name in known}
    own = OWN.get(family, {})
    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": pad_id}
    if CONFIG_MAPPING[family]().is_encoder_decoder:
        special["decoder_start_token_id"] = PAD
    return CONFIG_MAPPING[family](**small | special | own, num_labels=1)


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights, the same in every call."""
    with quiet_loading():
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes a random model and a tokenizer, and gives their folder."""

    def write(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> Path:
        with quiet_loading():
            build(config).save_pretrained(tmp_path)
            tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return write


def in_all_ways(folder: Path, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Logits of five pairs: the model's own, alone; scored; trained together and singly."""
    model, tokenizer = load_cross_encoder(folder)
    encoder, random = PairEncoder(tokenizer), np.random.default_rng(1)
    sides = [(random.integers(5, 250, 3), random.integers(5, 250, n)) for n in (20, 19, 4, 12, 1)]
    pairs = [encoder.encode(*side, 8, 32) for side in sides]
    settings = ScoringSpec(query_tokens=8, document_tokens=32, precision="fp32")
    scored = torch.from_numpy(score_pairs(model, encoder, sides, settings).scores)
    by_ids = needs_ids(model, encoder, packed=False)
    with quiet_loading(), attention(model, "eager"):
        scorer = Scorer(model, bf16=False, by_ids=by_ids)
        together = scorer([encoder.collate(pairs[:3]), encoder.collate(pairs[3:])])
        singly = torch.cat([scorer([encoder.collate([pair])]) for pair in pairs])
        together.sum().backward()
    weights = model.get_input_embeddings().weight
    assert weights.grad.abs().sum() > 0
    own_model = build(config).eval()
    with quiet_loading(), torch.no_grad():
        own = [own_model(input_ids=torch.from_numpy(p.input_ids)[None]).logits[0] for p in pairs]
    return {"own": torch.cat(own), "scored": scored, "together": together, "singly": singly}


@pytest.mark.parametrize("family", HOLD.split())
def test_trained_and_scored_logits_are_the_models_own_alone_and_in_batches(family, save):
    # Published decoders have neither a template nor a padding token.
    if family in DECODERS.split():
        config, tokenizer = make_config(family, None), make_tokenizer(None, pad=False)
    else:
        config, tokenizer = make_config(family), make_tokenizer("<s> $A </s> $B </s>")
    logits = in_all_ways(save(config, tokenizer), config)
    own = logits.pop("own")
    assert own.std() > 1e-3
    for found in logits.values():
        torch.testing.assert_close(found.detach(), own, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", DEPEND_ON_THE_BATCH.split())
def test_families_whose_scores_depend_on_the_batch_are_refused(family, save):
    folder = save(make_config(family), make_tokenizer("<s> $A </s> $B </s>"))
    with pytest.raises(ConfigError, match=rf"this {family} model .* depend on the batch"):
        load_cross_encoder(folder, seed=1)


def test_a_family_that_scores_nothing_on_this_machine_is_refused(save):
    folder = save(make_config("mra"), make_tokenizer("<s> $A </s> $B </s>"))
    with pytest.raises(ConfigError, match="this mra model gives different pairs the same score"):
        load_cross_encoder(folder, seed=1)


def test_every_family_of_this_transformers_is_in_the_table():
    assert {*f"{HOLD} {DEPEND_ON_THE_BATCH} mra {UNTESTED}".split()} == set(FAMILIES)


@pytest.mark.parametrize("family", ENCODER_DECODERS.split())
def test_an_end_of_input_within_a_text_is_text(family, save):
    folder = save(make_config(family), make_tokenizer("<s> $A </s> $B </s>"))
    model, tokenizer = load_cross_encoder(folder)
    texts = ["the </s> river", "the river"]
    query_ids, *documents = tokenize(tokenizer, ["where", *texts], 32)
    assert EOS not in documents[0]
    assert tokenizer.decode(documents[0]) == texts[0]
    settings = ScoringSpec(query_tokens=8, document_tokens=32, precision="fp32")
    sides = [(query_ids, document_ids) for document_ids in documents]
    scores = score_pairs(model, PairEncoder(tokenizer), sides, settings).scores
    assert scores[0] != scores[1]


def test_big_bird_attends_to_the_whole_input_beside_any_other(save):
    config = make_config("big_bird")
    config.block_size, config.num_random_blocks, config.max_position_embeddings = 4, 1, 300
    assert config.attention_type == "block_sparse"
    model, tokenizer = load_cross_encoder(save(config, make_tokenizer("<s> $A </s> $B </s>")))
    encoder, random = PairEncoder(tokenizer), np.random.default_rng(1)
    sides = [(random.integers(5, 250, 3), random.integers(5, 250, n)) for n in (200, 60)]
    pairs = [encoder.encode(*side, 8, 256) for side in sides]
    with torch.no_grad():
        together = model(**encoder.collate(pairs)).logits
        alone = torch.cat([model(**encoder.collate([pair])).logits for pair in pairs])
    torch.testing.assert_close(together, alone)
    assert model.config.attention_type == "original_full"


def test_reformers_random_hashing_is_refused(save):
    folder = save(make_config("bert"), make_tokenizer("<s> $A </s> $B </s>"))
    config = {"model_type": "reformer", "attn_layers": ["local", "lsh"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="reformer models hash long inputs at random"):
        load_cross_encoder(folder, seed=1)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("pad_id", [3, 0, None])
def test_the_tokenizers_padding_token_replaces_another_in_the_configuration(family, pad_id, save):
    config = make_config(family, pad_id)
    logits = in_all_ways(save(config, make_tokenizer(None)), config)
    own = logits.pop("own")
    for found in logits.values():
        torch.testing.assert_close(found.detach(), own, atol=2e-5, rtol=2e-5)


def test_a_trained_head_is_refused_another_token_than_the_one_it_was_trained_on(save):
    """Without a padding token it reads `</s>`; padded with `</s>` it would read the one before."""
    folder = save(make_config("qwen3", None), make_tokenizer("<s> $A $B </s>", pad=False))
    with pytest.raises(ConfigError, match=r"qwen3 model gives a pair .* alone and .* beside"):
        load_cross_encoder(folder)
    model, tokenizer = load_cross_encoder(folder, seed=1)
    assert model.config.pad_token_id == tokenizer.pad_token_id == EOS


def test_a_head_of_two_labels_is_named_in_one_sentence(save):
    config = make_config("bert")
    config.num_labels = 2
    folder = save(config, make_tokenizer("<s> $A </s> $B </s>"))
    with pytest.raises(DataError) as raised:
        load_cross_encoder(folder)
    assert str(raised.value).removeprefix(f"{folder}: ") == (
        "no trained cross-encoder with one output, its classifier.bias is [2], one output has [1]: "
        "name a model with a head of one output, or train one"
    )


def test_code_of_a_models_own_is_refused_and_never_asked_for(save, monkeypatch):
    folder = save(make_config("bert"), make_tokenizer("<s> $A </s> $B </s>"))
    mapping = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    config = {"model_type": "own", "auto_map": mapping}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('this code ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    with pytest.raises(ConfigError) as raised:
        load_cross_encoder(folder)
    assert str(raised.value) == (
        f"model '{folder}' cannot be loaded: it needs code of its own, and only code of installed "
        "packages is run. Name a model of an architecture that transformers has"
    )


def test_a_model_without_a_head_for_one_score_is_refused_in_one_sentence(save):
    folder = save(make_config("bert"), make_tokenizer("<s> $A </s> $B </s>"))
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ConfigError, match="mamba models have no AutoModelForSequenceClassif"):
        load_cross_encoder(folder, seed=1)


def test_segment_ids_are_left_out_for_a_family_that_takes_none(save):
    tokenizer = make_tokenizer("<s> $A </s> $B </s>")
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    _, loaded = load_cross_encoder(save(make_config("qwen3"), tokenizer))
    assert loaded.model_input_names == ["input_ids", "attention_mask"]
    assert not PairEncoder(loaded).has_segments
