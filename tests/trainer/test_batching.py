from pathlib import Path

import numpy as np
import pytest
import torch

from xsweep.evaluator.data.readers import read_texts
from xsweep.trainer.batching import draw_samples, dropout_seed, pad_targets
from xsweep.trainer.forward import Scorer, attention
from xsweep.trainer.objectives import OBJECTIVES
from xsweep.trainer.teachers import Sample


class Units:
    """A teacher of bare units: a sample holds its unit and one random number."""

    uses_chance = True

    def __init__(self, units):
        self.units = units

    def __len__(self):
        return self.units

    def draw(self, unit, generator):
        number = np.array([generator.random()], dtype=np.float32)
        return Sample(str(unit), (), number, number)


def test_a_pass_uses_every_query_once_and_each_pass_has_its_own_order():
    seen = [sample.query_id for step in range(4) for sample in draw_samples(Units(10), 1, step, 5)]
    assert sorted(seen[:10], key=int) == sorted(seen[10:], key=int) == [str(n) for n in range(10)]
    assert seen[:10] != seen[10:]


def test_a_global_batch_depends_on_seed_and_step_alone():
    def content(seed, step):
        return [(s.query_id, s.targets_D.item()) for s in draw_samples(Units(10), seed, step, 3)]

    assert content(1, 7) == content(1, 7)
    assert content(1, 7) != content(2, 7)
    assert len({value for step in range(9) for _, value in content(1, step)}) == 27


def test_dropout_has_a_seed_for_each_micro_batch_of_each_step():
    seeds = {dropout_seed(*place) for place in np.ndindex(4, 4, 4)}
    assert len(seeds) == 64


def test_micro_batches_are_whole_samples_in_order_under_the_budget(world):
    _, _, assembler, samples = world.prepared(micro_batch_tokens=220)
    pieces = assembler.cut(samples)
    assert len(pieces) > 1
    assert [sample for piece in pieces for sample in piece] == samples
    assert all(assembler.tokens(piece) <= 220 or len(piece) == 1 for piece in pieces)


def test_a_sample_above_the_budget_is_a_micro_batch_of_its_own(world):
    _, _, assembler, samples = world.prepared(micro_batch_tokens=1)
    assert [len(piece) for piece in assembler.cut(samples)] == [1] * 5


def test_an_assembled_batch_counts_its_tokens_and_slots(world):
    _, _, assembler, samples = world.prepared(forward_tokens=100)
    batch = assembler.assemble(samples)
    masks = [inputs["attention_mask"] for inputs in batch.forwards]
    assert batch.tokens == sum(int(mask.sum()) for mask in masks) == assembler.tokens(samples)
    assert batch.slots == sum(mask.numel() for mask in masks)
    assert all(mask.numel() <= 100 for mask in masks)


@pytest.mark.parametrize(
    ("settings", "on_cpu", "on_gpu"),
    [({"forward_tokens": 2048}, 2048, 9000), ({"forward_tokens": 100}, 100, 100)],
)
def test_a_gpu_takes_a_micro_batch_in_one_pass_by_default(world, settings, on_cpu, on_gpu):
    _, _, assembler, _ = world.prepared(**settings)
    for device, expected in (("cpu", on_cpu), ("cuda", on_gpu)):
        assembler.device = torch.device(device)
        assembler.limit(9000)
        assert assembler.forward_tokens == expected


def plain_scores(model, tokenizer, world, samples):
    """The score matrix from texts, one padded batch and the model's own forward pass."""
    texts = dict(read_texts(Path(world.collection["documents"]["path"])))
    questions = dict(read_texts(Path(world.collection["queries"]["path"])))
    pairs = [
        (" ".join(questions[s.query_id].split()[:4]), " ".join(texts[d].split()[:24]))
        for s in samples
        for d in s.doc_ids
    ]
    inputs = tokenizer(*zip(*pairs, strict=True), padding=True, return_tensors="pt")
    logits = model(**inputs).logits[:, 0]
    targets_QD, _, mask_QD = pad_targets(samples)
    scores_QD = torch.zeros_like(targets_QD)
    scores_QD[mask_QD] = logits
    return scores_QD, targets_QD, mask_QD


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_gradients_of_cut_batches_equal_those_of_one_padded_batch(world, name):
    model, tokenizer, assembler, samples = world.prepared(
        micro_batch_tokens=220, forward_tokens=100
    )
    if OBJECTIVES[name].labels_only:
        samples = [
            s._replace(targets_D=np.eye(1, len(s.doc_ids), dtype=np.float32)[0]) for s in samples
        ]
    function = OBJECTIVES[name].function
    scores_QD, targets_QD, mask_QD = plain_scores(model, tokenizer, world, samples)
    total, count = function(scores_QD, targets_QD, mask_QD)
    (total / count).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    scorer, loss = Scorer(model, bf16=False), 0.0
    with attention(model, "eager"):
        for piece in assembler.cut(samples):
            batch = assembler.assemble(piece)
            targets_QD, _, mask_QD = batch.targets
            part, _ = function(batch.matrix(scorer(batch.forwards)), targets_QD, mask_QD)
            (part / count).backward()
            loss += part.item() / count.item()
    assert loss == pytest.approx((total / count).item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_bf16_gives_fp32_logits_near_those_of_fp32(world):
    model, _, assembler, samples = world.prepared()
    batch = assembler.assemble(samples)
    with torch.no_grad():
        exact, rounded = (Scorer(model, bf16=bf16)(batch.forwards) for bf16 in (False, True))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=2e-2, rtol=0)
