import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES
from transformers import AutoModelForSequenceClassification

from xsweep.trainer.forward import Scorer, attention

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
def test_scores_do_not_depend_on_the_order_and_size_of_passes_in_any_family(family):
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
def test_gradients_equal_those_of_the_models_own_lookup_in_every_family(family):
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


def test_attention_is_restored_after_the_block():
    model = build("bert")
    with attention(model, "eager"):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"
