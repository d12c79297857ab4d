import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from trainer.scorer import Scorer, attention

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "num_labels": 1,
}
FAMILIES = {
    "bert": BertConfig(**SMALL, pad_token_id=0),
    "electra": ElectraConfig(**SMALL, pad_token_id=0, embedding_size=16),
    "roberta": RobertaConfig(**SMALL, pad_token_id=1),
    "deberta": DebertaV2Config(
        **SMALL, pad_token_id=0, relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
    "deberta-v3": DebertaV2Config(
        **SMALL | {"type_vocab_size": 0},
        pad_token_id=0,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        max_relative_positions=-1,
        pooler_hidden_size=32,
    ),
    "modernbert": ModernBertConfig(
        **SMALL, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3
    ),
}
LENGTHS = [[12, 12, 11], [7, 4]]


def build(family):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(FAMILIES[family]).eval()


def passes(pad_id):
    """Forward passes over pairs of the given lengths, and each pair alone."""
    torch.manual_seed(1)
    forwards, alone = [], []
    for lengths in LENGTHS:
        ids = torch.full((len(lengths), max(lengths)), pad_id)
        mask = torch.zeros_like(ids)
        for row, length in enumerate(lengths):
            ids[row, :length] = torch.randint(5, 50, (length,))
            mask[row, :length] = 1
            alone.append(ids[row : row + 1, :length])
        forwards.append({"input_ids": ids, "attention_mask": mask})
    return forwards, alone


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padded_passes_score_as_each_pair_alone_in_every_family(family, implementation):
    model = build(family)
    forwards, alone = passes(FAMILIES[family].pad_token_id)
    with torch.no_grad():
        expected = torch.cat([model(input_ids=ids).logits[:, 0] for ids in alone])
        with attention(model, "eager" if "deberta" in family else implementation):
            scores = Scorer(model, bf16=False)(forwards)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_and_the_size_of_passes_change_no_score_in_any_family(family):
    model = build(family)
    pad_id = FAMILIES[family].pad_token_id
    forwards, alone = passes(pad_id)
    longest = max(ids.shape[1] for ids in alone)
    with torch.no_grad(), attention(model, "eager"):
        scorer = Scorer(model, bf16=False)
        expected = scorer(forwards)
        backwards = scorer([padded(alone[::-1], pad_id, longest + 5)])
        singles = scorer([padded([ids], pad_id, longest) for ids in alone])
    torch.testing.assert_close(backwards.flip(0), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(singles, expected, atol=1e-5, rtol=0)


def padded(rows, pad_id, length):
    ids = torch.cat([F.pad(row, (0, length - row.shape[1]), value=pad_id) for row in rows])
    mask = torch.cat([F.pad(torch.ones_like(row), (0, length - row.shape[1])) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_models_own_lookup_in_every_family(family):
    model = build(family)
    forwards, alone = passes(FAMILIES[family].pad_token_id)
    torch.cat([model(input_ids=ids).logits[:, 0] for ids in alone]).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with attention(model, "eager"):
        Scorer(model, bf16=False)(forwards).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)


def test_attention_is_set_back_after_the_block():
    model = build("bert")
    with attention(model, "eager"):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"
