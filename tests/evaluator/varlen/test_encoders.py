from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from xsweep.errors import ConfigError
from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.evaluator.pairs import PairEncoder, PairIds
from xsweep.evaluator.scoring import score_pairs
from xsweep.evaluator.specs import ScoringSpec
from xsweep.evaluator.varlen.attention import attend_padded, pack
from xsweep.evaluator.varlen.encoders import build_encoder, build_scorer, has_unpadded
from xsweep.evaluator.varlen.layers import Kernels

SETTINGS = ScoringSpec(query_tokens=8, document_tokens=80)
FP32 = Kernels(torch.float32)
UNPADDED = ("bert", "electra", "roberta", "modernbert")


def _encoded(tokenizer, count: int = 12) -> list[PairIds]:
    """Pairs of 5 to 90 tokens, several of one length, the longest first."""
    random = np.random.default_rng(2)
    encoder = PairEncoder(tokenizer)
    pairs = [
        encoder.encode(
            *(random.integers(10, 60, int(random.integers(1, most))) for most in (8, 80)), 8, 80
        )
        for _ in range(count)
    ]
    return sorted(pairs + pairs[:3], key=lambda pair: -len(pair.input_ids))


def _flattened_logits(model, pairs: list[PairIds]) -> torch.Tensor:
    """transformers' own pass over one row of all pairs, kept apart by a block-diagonal mask.

    The logits come from its own head, one pair's states at a time.
    """
    packing = pack(pairs)
    owner_T = torch.repeat_interleave(torch.arange(len(pairs)), torch.tensor(packing.lengths))
    places_T = torch.arange(len(owner_T))
    masks = {
        "full_attention": owner_T[:, None] == owner_T,
        "sliding_attention": (owner_T[:, None] == owner_T)
        & ((places_T[:, None] - places_T).abs() <= getattr(model.config, "sliding_window", 0)),
    }
    added = {
        kind: torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]
        for kind, mask in masks.items()
    }
    family = model.config.model_type
    offset = model.config.pad_token_id + 1 if family == "roberta" else 0
    segments = {"token_type_ids": packing.segments_T[None]} if family in ("bert", "electra") else {}
    states = model.base_model(
        packing.ids_T[None],
        attention_mask=added if family == "modernbert" else added["full_attention"],
        position_ids=packing.positions_T[None] + offset,
        **segments,
    ).last_hidden_state[0]
    first = states[packing.starts_S][:, None]
    if family == "bert":
        first = model.bert.pooler(first)
    if family == "modernbert":
        first = model.head(first[:, 0])
    return model.classifier(first)[:, 0]


@pytest.mark.parametrize("family", UNPADDED)
@torch.no_grad()
def test_packed_pairs_equal_one_row_under_a_block_diagonal_mask(
    family: str, make_model_folder: Callable
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder(family))
    pairs = _encoded(tokenizer)
    scorer = build_scorer(model, FP32)
    found = scorer(pack(pairs))
    assert found.std() > 0.05, "scores that hardly differ would prove nothing"
    torch.testing.assert_close(found, _flattened_logits(model, pairs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", UNPADDED)
@torch.no_grad()
def test_attention_over_padded_sequences_gives_a_model_the_same_scores(
    family: str, make_model_folder: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder(family))
    packing = pack(_encoded(tokenizer))
    expected = build_scorer(model, FP32)(packing)
    monkeypatch.setattr(
        "xsweep.evaluator.varlen.layers.attend",
        lambda query, sides, packing, window: attend_padded(query, sides, packing, window, 0.0),
    )
    found = build_scorer(model, FP32)(packing.with_slots())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", UNPADDED)
@given(lengths=st.lists(st.integers(1, 80), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_packed_pairs_of_any_lengths_equal_the_padded_model(
    make_model_folder: Callable, family: str, lengths: list[int]
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder(family))
    encoder, random = PairEncoder(tokenizer), np.random.default_rng(sum(lengths))
    pairs = [
        encoder.encode(random.integers(10, 60, 5), random.integers(10, 60, length), 8, 80)
        for length in lengths
    ]
    scorer = build_scorer(model, FP32)
    expected = model(**encoder.collate(pairs)).logits[:, 0]
    torch.testing.assert_close(scorer(pack(pairs)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", UNPADDED)
@torch.no_grad()
def test_all_states_equal_those_of_single_sequences(
    family: str, make_model_folder: Callable
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder(family))
    pairs = _encoded(tokenizer, 4)
    encoder = build_encoder(model, FP32)
    packing = pack(pairs)
    states = encoder(packing, False)
    collate = PairEncoder(tokenizer).collate
    alone = [model.base_model(**collate([pair])).last_hidden_state[0] for pair in pairs]
    torch.testing.assert_close(states, torch.cat(alone), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder(packing, True), states[packing.starts_S], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_head_on_the_mean_of_all_tokens_equals_the_model(
    make_model_folder: Callable, make_tokenizer: Callable
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(
        make_model_folder("modernbert"), classifier_pooling="mean"
    ).eval()
    tokenizer = make_tokenizer("modernbert")
    pairs = _encoded(tokenizer)
    scorer = build_scorer(model, FP32)
    expected = model(**PairEncoder(tokenizer).collate(pairs)).logits[:, 0]
    torch.testing.assert_close(scorer(pack(pairs)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", UNPADDED)
@torch.no_grad()
def test_bf16_is_as_near_to_fp32_as_autocast_is(family: str, make_model_folder: Callable) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder(family))
    pairs = [(pair.input_ids[1:6], pair.input_ids[6:]) for pair in _encoded(tokenizer, 40)]
    errors = {}
    encoder = PairEncoder(tokenizer)
    exact = score_pairs(model, encoder, pairs, SETTINGS)
    for layout in ("padded", "unpadded"):
        settings = SETTINGS.model_copy(update={"precision": "bf16", "layout": layout})
        rounded = score_pairs(model, encoder, pairs, settings)
        errors[layout] = np.abs(rounded.scores - exact.scores).mean()
    assert errors["unpadded"] < 1.5 * errors["padded"] < 0.1


def test_scoring_does_not_change_the_model(make_model_folder: Callable) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pairs = [(pair.input_ids[1:3], pair.input_ids[3:]) for pair in _encoded(tokenizer, 3)]
    encoder, settings = PairEncoder(tokenizer), SETTINGS.model_copy(update={"precision": "bf16"})
    first = score_pairs(model, encoder, pairs, settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.mul_(0)
    changed = score_pairs(model, encoder, pairs, settings)
    assert not np.array_equal(first.scores, changed.scores), "new weights are used, not copies"


def test_other_families_run_padded_and_refuse_the_unpadded_layout(
    make_model_folder: Callable,
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("deberta"))
    assert not has_unpadded(model)
    pairs = [(np.array([9, 8]), np.array([7])), (np.array([9]), np.array([7, 8, 9, 10, 11]))]
    encoder, unpadded = PairEncoder(tokenizer), SETTINGS.model_copy(update={"layout": "unpadded"})
    assert score_pairs(model, encoder, pairs, SETTINGS).padding_waste > 0
    with pytest.raises(ConfigError, match="deberta-v2 models run padded only"):
        score_pairs(model, encoder, pairs, unpadded)


def test_out_of_memory_halves_the_budget_without_padding(
    make_model_folder: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    pairs = [(pair.input_ids[1:3], pair.input_ids[3:]) for pair in _encoded(tokenizer, 30)]
    encoder, settings = PairEncoder(tokenizer), SETTINGS.model_copy(update={"batch_tokens": 1000})
    expected = score_pairs(model, encoder, pairs, SETTINGS).scores
    sizes = []

    def refuse_large(model, kernels):
        scorer = build_scorer(model, kernels)

        def score(packing):
            sizes.append(len(packing.ids_T))
            if sizes[-1] > 150:
                raise torch.OutOfMemoryError("no memory for more than 150 tokens")
            return scorer(packing)

        return score

    monkeypatch.setattr("xsweep.evaluator.scoring.build_scorer", refuse_large)
    scored = score_pairs(model, encoder, pairs, settings)
    assert max(sizes) > 150 >= sizes[-1]
    np.testing.assert_allclose(scored.scores, expected, atol=1e-5)
