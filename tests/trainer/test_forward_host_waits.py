"""Packed passes on a device that is not the CPU: no layer makes the host wait or sends it numbers.

PyTorch's `meta` device stands for a GPU: it takes the same branches and has no values to wait for.
"""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from families import FAMILIES
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForSequenceClassification

from xsweep.evaluator.models.cross_encoder import _keep_head_in_fp32
from xsweep.evaluator.pairs import PairIds
from xsweep.evaluator.varlen.attention import pack
from xsweep.evaluator.varlen.encoders import build_scorer
from xsweep.evaluator.varlen.layers import Kernels
from xsweep.trainer.forward import Scorer
from xsweep.trainer.objectives import OBJECTIVES

PACKED = ("bert", "electra", "roberta", "modernbert")
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave", "equal")
"""Operators that read values on the host, or have an output whose shape depends on values."""


class NoWaits(TorchDispatchMode):
    """Raises if an operator waits for the device or copies between it and the host."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.names.append(name)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        is_read = any(name.startswith((read, f"_{read}")) for read in READS)
        by_mask = name.startswith("index") and any(t.dtype == torch.bool for t in inputs[1:])
        assert not is_read, f"{name} waits for values"
        assert not by_mask, f"{name} waits for a mask's values"
        output = function(*args, **kwargs or {})
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        # A number travels with the kernel that is launched.
        devices = {tensor.device.type for tensor in (*inputs, *outputs) if tensor.ndim}
        assert len(devices) < 2, f"{name} copies between host and device"
        return output


class NoUploads(TorchFunctionMode):
    """Raises if a tensor is made from numbers on the host."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.tensor, torch.as_tensor, torch.from_numpy):
            raise AssertionError(f"{function.__name__} copies numbers to the device")
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: x.unique(),
        lambda x: torch.ones(3).to(x.device),
        lambda x: torch.tensor([1, 2], device=x.device),
    ],
)
def test_the_watch_sees_every_kind_of_wait(wait):
    states = torch.ones(3, device="meta")
    with pytest.raises(AssertionError, match=r"waits|copies"), NoWaits(), NoUploads():
        wait(states)


def on_device(family, monkeypatch, **changes):
    """A model and its packed passes on the stand-in for a GPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # `meta` has none
    config = copy.deepcopy(FAMILIES[family])
    config.update(changes)
    model = AutoModelForSequenceClassification.from_config(config)
    _keep_head_in_fp32(model)
    pairs = [
        PairIds(np.full(length, 5), np.arange(length) // 9 if family == "bert" else None)
        for length in (17, 9, 4, 2)
    ]
    packings = [pack(part).each(lambda t: t.to("meta")) for part in (pairs[:3], pairs[3:])]
    return model.to("meta"), packings


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("dropout", [True, False])
def test_no_layer_waits_in_training(family, bf16, recompute, dropout, monkeypatch):
    rates = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    if family == "modernbert":
        rates = dict.fromkeys(("embedding_dropout", "attention_dropout", "mlp_dropout"), 0.1)
    model, packed = on_device(family, monkeypatch, **(rates if dropout else {}))
    scorer = Scorer(model.train(dropout), bf16=bf16, recompute=recompute)
    with NoWaits() as watch, NoUploads():
        scorer(packed).sum().backward()
    assert ("_varlen_attn" in watch.names) == (bf16 and not dropout)


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_layer_waits_in_scoring(family, dtype, monkeypatch):
    model, packed = on_device(family, monkeypatch)
    scorer = build_scorer(model, Kernels(dtype))
    with torch.inference_mode(), NoWaits() as watch, NoUploads():
        for packing in packed:
            scorer(packing)
    calls = [name for name in watch.names if "varlen" in name or "scaled_dot" in name]
    assert len(calls) == len(packed) * model.config.num_hidden_layers, "one call a layer"


def test_a_head_over_the_mean_of_all_tokens_does_not_wait(monkeypatch):
    model, packed = on_device("modernbert", monkeypatch, classifier_pooling="mean")
    with NoWaits(), NoUploads():
        Scorer(model, bf16=True)(packed).sum().backward()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_objective_waits(name):
    scores_QD = torch.zeros((3, 5), device="meta", requires_grad=True)
    with NoWaits(), NoUploads():
        mask_QD = torch.ones_like(scores_QD, dtype=torch.bool)
        total, count = OBJECTIVES[name].function(scores_QD, torch.zeros_like(scores_QD), mask_QD)
        (total / count).backward()


@pytest.mark.parametrize("family", ["deberta", "deberta-v3"])
def test_no_layer_of_a_padded_deberta_waits(family, monkeypatch):
    model, _ = on_device(family, monkeypatch)
    ids = torch.full((3, 9), 5, device="meta")
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with NoWaits():
        Scorer(model.train(), bf16=True)([batch]).sum().backward()
