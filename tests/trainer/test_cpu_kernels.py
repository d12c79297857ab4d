"""Packed passes have the scores and gradients of padded ones, and dropout at the given rate."""

import copy
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from xsweep.errors import ConfigError
from xsweep.evaluator.pairs import PairIds
from xsweep.evaluator.varlen.attention import attend_padded, pack
from xsweep.evaluator.varlen.encoders import has_unpadded, runs_unpadded
from xsweep.trainer.cpu_kernels import (
    Attention,
    DropAndAdd,
    TrainingKernels,
    random_bits,
    scale,
)
from xsweep.trainer.forward import Scorer, attention

PACKED = ("bert", "electra", "roberta", "modernbert")


def build(family, **changes):
    """A model with logits over about 1 unit; ModernBERT's second layer has a window of 4."""
    config = copy.deepcopy(FAMILIES[family])
    config.initializer_range = 0.15
    for name, value in changes.items():
        setattr(config, name, value)
    if family == "modernbert":
        config.sliding_window = 4
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    return model.float().eval()


def forwards(family, lengths):
    """The same pairs packed in two passes, and padded in one batch."""
    random = np.random.default_rng(sum(lengths))
    segmented = family in ("bert", "electra")
    pairs = [
        PairIds(
            random.integers(5, 50, length),
            (np.arange(length) > length // 2).astype(np.int64) if segmented else None,
        )
        for length in lengths
    ]
    half = (len(pairs) + 1) // 2
    packed = [pack(part) for part in (pairs[:half], pairs[half:]) if part]
    shape = len(pairs), max(lengths)
    padded = {"input_ids": np.full(shape, FAMILIES[family].pad_token_id, dtype=np.int64)}
    padded["attention_mask"] = np.zeros(shape, dtype=np.int64)
    if segmented:
        padded["token_type_ids"] = np.zeros(shape, dtype=np.int64)
    for row, pair in enumerate(pairs):
        length = len(pair.input_ids)
        padded["input_ids"][row, :length] = pair.input_ids
        padded["attention_mask"][row, :length] = 1
        if segmented:
            padded["token_type_ids"][row, :length] = pair.token_type_ids
    return packed, {name: torch.from_numpy(array) for name, array in padded.items()}


def with_gradients(model, logits):
    """The logits, and every parameter's gradient of a function with slopes of both signs."""
    model.zero_grad()
    (logits.tanh() * torch.linspace(-1, 1, len(logits) + 1)[1:]).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), found


def assert_same(found, expected):
    (logits, gradients), (logits_then, gradients_then) = found, expected
    torch.testing.assert_close(logits, logits_then, atol=1e-5, rtol=0)
    assert gradients.keys() == gradients_then.keys()
    for name, value in gradients_then.items():
        torch.testing.assert_close(
            gradients[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("family", PACKED)
@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=7))
@settings(max_examples=25, deadline=None)
def test_scores_and_gradients_equal_those_of_the_padded_model_in_every_family(family, lengths):
    model = build(family)
    packed, padded = forwards(family, lengths)
    with attention(model, "eager"):
        expected = with_gradients(model, model(**padded).logits[:, 0])
    assert_same(with_gradients(model, Scorer(model, bf16=False)(packed)), expected)


def test_a_head_over_the_mean_of_all_tokens_has_the_padded_gradients_too():
    model = build("modernbert", classifier_pooling="mean")
    packed, padded = forwards("modernbert", [9, 30, 4])
    expected = with_gradients(model, model(**padded).logits[:, 0])
    assert_same(with_gradients(model, Scorer(model, bf16=False)(packed)), expected)


@pytest.mark.parametrize("family", PACKED)
def test_recomputed_activations_change_no_number(family):
    rates = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    if family == "modernbert":
        rates = dict.fromkeys(("embedding_dropout", "attention_dropout", "mlp_dropout"), 0.1)
    model = build(family, **rates).train()
    packed, _ = forwards(family, [12, 30, 4, 4])
    results = []
    for recompute in (False, True):
        torch.manual_seed(5)
        scorer = Scorer(model, bf16=False, recompute=recompute)
        results.append(with_gradients(model, scorer(packed)))
    assert torch.equal(results[0][0], results[1][0])
    assert_same(results[1], results[0])
    assert not torch.equal(results[0][0], with_gradients(model, scorer(packed))[0])


@pytest.mark.parametrize("family", PACKED)
def test_bf16_is_as_close_to_fp32_as_autocast(family):
    model = build(family)
    lengths = np.random.default_rng(3).integers(3, 31, 60).tolist()
    packed, padded = forwards(family, lengths)
    with attention(model, "eager"):
        exact, gradients = with_gradients(model, Scorer(model, bf16=False)(packed))
        errors = {}
        for name, passes in {"packed": packed, "padded": [padded]}.items():
            rounded, slopes = with_gradients(model, Scorer(model, bf16=True)(passes))
            errors[name] = (rounded - exact).abs().mean()
            errors[f"{name} gradients"] = sum(
                (slopes[key] - value).square().sum() for key, value in gradients.items()
            ).sqrt()
    assert 0 < errors["packed"] < 1.3 * errors["padded"] < 0.1
    assert 0 < errors["packed gradients"] < 1.3 * errors["padded gradients"]


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    window=st.one_of(st.none(), st.integers(1, 5)),
    first=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_attention_over_padded_sequences_has_equal_values_and_gradients(lengths, window, first):
    torch.manual_seed(sum(lengths))
    packing = pack([PairIds(np.arange(length), None) for length in lengths])
    sides = torch.randn(sum(lengths), 2 if first else 3, 2, 4, requires_grad=True)
    query = torch.randn(len(lengths), 2, 4, requires_grad=True) if first else None
    leaves = [sides] if query is None else [sides, query]
    found = []
    for mixed in (
        Attention.apply(query, sides, packing, window, 0.0),
        attend_padded(query, sides, packing.with_slots(), window, 0.0),
    ):
        slopes = torch.linspace(-1, 1, mixed.numel()).view_as(mixed)
        found.append([mixed, *torch.autograd.grad((mixed * slopes).sum(), leaves)])
    torch.testing.assert_close(found[0], found[1])


def test_the_gradient_of_attention_agrees_with_finite_differences():
    torch.manual_seed(1)
    packing = pack([PairIds(np.arange(length), None) for length in (4, 1, 3)])
    sides = torch.randn(8, 3, 2, 4, requires_grad=True)

    def attended(sides):
        torch.manual_seed(7)  # the same dropout in every call
        return Attention.apply(None, sides, packing, 2, 0.3)

    step, direction = 1e-2, torch.randn(8, 3, 2, 4)
    weights = torch.randn(8, 8)
    (slope,) = torch.autograd.grad((attended(sides) * weights).sum(), sides)
    with torch.no_grad():
        ahead, behind = (attended(sides + s * direction) * weights for s in (step, -step))
    change = (ahead.double() - behind.double()).sum() / (2 * step)
    assert (slope * direction).sum().item() == pytest.approx(change.item(), rel=1e-3)


def test_dropout_has_the_given_rate_and_keeps_the_mean():
    torch.manual_seed(2)
    states = torch.ones(1000, 1000, requires_grad=True)
    residual = torch.full((1000, 1000), 3.0)
    packing = pack(10 * [PairIds(np.arange(100), None)])
    out = DropAndAdd.apply(residual, states, 0.1, packing)
    is_dropped = out == 3
    # 10**6 draws: six standard deviations are 0.0018.
    assert is_dropped.double().mean().item() == pytest.approx(0.1, abs=0.0018)
    assert out[~is_dropped].unique().tolist() == pytest.approx([3 + scale(0.1)])
    assert scale(0.1) == pytest.approx(1 / 0.9, rel=1e-5)
    # Neither rows nor columns are correlated.
    assert is_dropped.double().mean(0).std().item() == pytest.approx((0.09 / 1000) ** 0.5, rel=0.15)
    assert is_dropped.double().mean(1).std().item() == pytest.approx((0.09 / 1000) ** 0.5, rel=0.15)
    (slopes,) = torch.autograd.grad(out.sum(), states)
    assert torch.equal(slopes == 0, is_dropped)


def test_attention_weights_are_dropped_at_the_given_rate():
    torch.manual_seed(3)
    packing = pack([PairIds(np.arange(200), None)])
    sides = torch.zeros(200, 3, 2, 200)
    sides[:, 2] = torch.eye(200)[:, None]
    # Equal scores, and values that are unit vectors: the output is the matrix of dropped weights.
    mixed = Attention.apply(None, sides, packing, None, 0.2) * 200
    # 80,000 draws: six standard deviations are 0.0085.
    assert (mixed == 0).double().mean().item() == pytest.approx(0.2, abs=0.0085)
    assert mixed[mixed > 0].unique().tolist() == pytest.approx([scale(0.2)], rel=1e-5)


def test_the_seed_of_torch_and_a_sequences_number_determine_its_mask():
    both = pack(2 * [PairIds(np.arange(9), None)])
    torch.manual_seed(4)
    first = random_bits([1001, 30], both)
    after = random_bits([1001, 30], both)
    assert len(first) == 1031
    assert not torch.equal(first, after)
    assert not torch.equal(first[:30], first[1001:])
    torch.manual_seed(4)
    assert torch.equal(random_bits([1001, 30], both), first)
    torch.manual_seed(4)
    alone = pack([PairIds(np.arange(9), None)])._replace(numbers=[1])
    assert torch.equal(random_bits([30], alone), first[1001:])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", PACKED)
def test_a_pairs_dropout_does_not_depend_on_the_other_pairs_of_its_pass(family, recompute):
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    if family == "modernbert":
        rates = dict.fromkeys(("embedding_dropout", "attention_dropout", "mlp_dropout"), 0.2)
    model = build(family, **rates).train()
    random = np.random.default_rng(1)
    segmented = family in ("bert", "electra")
    pairs = [
        PairIds(random.integers(5, 50, length), np.zeros(length, np.int64) if segmented else None)
        for length in (20, 12, 12, 5)
    ]
    scorer = Scorer(model, bf16=False, recompute=recompute)

    def scores(*passes):
        packed = [pack([pairs[n] for n in each])._replace(numbers=[*each]) for each in passes]
        return with_gradients(model, scorer(packed, seeds=[7] * len(passes)))

    assert_same(scores((0, 1), (2, 3)), scores((0, 1, 2, 3)))
    logits, _ = scores((1, 2))
    torch.testing.assert_close(logits, scores((0, 1, 2, 3))[0][1:3], atol=1e-5, rtol=0)


def test_a_rate_of_zero_is_no_dropout():
    kernels = TrainingKernels(torch.float32, dropout=True)
    states = torch.randn(3, 4)
    assert kernels.drop(states, 0.0) is states
    assert torch.equal(kernels.add(states, states, 0.0), 2 * states)


def test_families_without_a_packed_pass_are_trained_padded_and_refuse_unpadded():
    deberta, bert = build("deberta-v3"), build("bert")
    assert not has_unpadded(deberta)
    assert not runs_unpadded(deberta, "auto")
    assert runs_unpadded(bert, "auto")
    assert not runs_unpadded(bert, "padded")
    with pytest.raises(ConfigError, match="deberta-v2 models run padded only"):
        runs_unpadded(deberta, "unpadded")


KEEP_FREED_MEMORY = """
import resource
from xsweep.trainer.cpu_kernels import keep_freed_memory
for limit in (resource.RLIM_INFINITY, 2**40):
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(keep_freed_memory())
"""


@pytest.mark.slow(3)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_unless_the_address_space_is_limited():
    command = [sys.executable, "-c", KEEP_FREED_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
