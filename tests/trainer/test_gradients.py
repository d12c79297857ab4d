"""The gradient of a global batch does not depend on its cut, its passes or the ranks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plain_engine import PlainBackward

from xsweep.evaluator.device import is_out_of_memory
from xsweep.trainer.batching import Targets
from xsweep.trainer.forward import Scorer, attention
from xsweep.trainer.gradients import Budgets, Gradients, build_terms, count_terms, weigh_terms
from xsweep.trainer.objectives import OBJECTIVES
from xsweep.trainer.specs import ObjectiveSpec


def gradient(world, objective, budget, out, *, dropout, labels=False, packed=False):
    """Loss and gradient of five lists of 2 to 6 documents, and the number of backward passes."""
    model, _, assembler, samples = world.prepared(
        packed=packed, micro_batch_tokens=budget, forward_tokens=60
    )
    if labels:
        samples = [
            s._replace(targets_D=np.eye(1, len(s.doc_ids), dtype=np.float32)[0]) for s in samples
        ]
    scorer = Scorer(model.train(dropout), bf16=False)
    spec = SimpleNamespace(objective=ObjectiveSpec.model_validate(objective), seed=3)
    engine = PlainBackward(scorer)
    with attention(model, "eager"):
        budgets = Budgets(budget, out)
        work = Gradients(spec, engine, scorer, assembler, budgets).add(samples, step=4)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return work.loss, gradients, engine.passes


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_lists_in_two_passes_have_the_gradient_of_whole_lists(world, tmp_path, name):
    settings = {"dropout": False, "labels": OBJECTIVES[name].labels_only}
    whole, expected, one = gradient(world, {"name": name}, 100_000, tmp_path, **settings)
    for packed in (False, True):
        settings["packed"] = packed
        loss, found, several = gradient(world, {"name": name}, 70, tmp_path, **settings)
        assert one == 1
        assert several > 5
        assert loss == pytest.approx(whole, rel=1e-5)
        for parameter, value in expected.items():
            torch.testing.assert_close(found[parameter], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_dropout_is_the_same_in_both_passes(world, tmp_path, packed):
    # Each list is a global batch of one micro-batch with its own seed, which takes one pass or,
    # above the budget, two.
    model, _, assembler, samples = world.prepared(
        packed=packed, micro_batch_tokens=100_000, forward_tokens=60
    )
    scorer = Scorer(model.train(), bf16=False)
    spec = SimpleNamespace(objective=ObjectiveSpec(name="distill_ranknet"), seed=3)
    found = []
    for budget in (100_000, 70):
        engine = PlainBackward(scorer)
        gradients = Gradients(spec, engine, scorer, assembler, Budgets(budget, tmp_path))
        losses = [gradients.add([sample], step).loss for step, sample in enumerate(samples)]
        found.append(
            (
                losses,
                {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
                engine.passes,
            )
        )
        model.zero_grad()
    (losses, gradients, one), (again, in_two, several) = found
    assert several > one == 5
    assert again == losses
    for parameter, value in gradients.items():
        torch.testing.assert_close(in_two[parameter], value, rtol=1e-4, atol=1e-6)


def test_a_combination_is_the_weighted_sum_of_means():
    # -ln softmax of the first: 0.241311; squares (2 - 3)², (0.5 - 0)², 0: mean 1.25 / 3.
    spec = ObjectiveSpec.model_validate(
        {"name": "infonce", "plus": [{"name": "mse", "weight": 0.5}]}
    )
    terms = build_terms(spec)
    targets = Targets(
        torch.tensor([[3.0, 0, -1]]), torch.tensor([[1.0, 0, 0]]), torch.ones(1, 3).bool()
    )
    counts = count_terms(terms, targets)
    assert counts == [1, 3]
    loss = weigh_terms(terms, torch.tensor([[2.0, 0.5, -1]]), targets, counts)
    assert loss.item() == pytest.approx(0.241311 + 0.5 * 1.25 / 3, abs=1e-6)


def test_a_single_loss_takes_the_teachers_signal_unchanged():
    (term,) = build_terms(ObjectiveSpec(name="bce"))
    targets = Targets(torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1]]), torch.ones(1, 2).bool())
    total, _ = term.sum_and_count(torch.tensor([[50.0, -50]]), targets)
    assert total.item() < 1e-6


def test_a_budget_is_halved_from_its_step_on_and_remembered(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    budgets = Budgets(1000, first)
    error = torch.OutOfMemoryError("no memory")
    budgets.halve(7, 900, error)
    budgets.halve(7, 400, error)
    assert [budgets.at(step) for step in (6, 7, 99)] == [1000, 200, 200]
    resumed = Budgets(1000, second, [first])
    assert [resumed.at(step) for step in (6, 7)] == [1000, 200]
    resumed.halve(9, 200, error)
    assert Budgets(1000, tmp_path, [second, first]).at(9) == 100


@pytest.mark.parametrize("torn", ["", "[[7, 20", '{"a": 1}', "[7]", '[["x", null]]', "\x00\xff"])
def test_a_file_of_budgets_that_is_not_readable_is_ignored_with_a_warning(tmp_path, caplog, torn):
    (tmp_path / "budgets.json").write_text(torn)
    budgets = Budgets(1000, tmp_path / "next", [tmp_path])
    assert budgets.at(7) == 1000
    assert "budgets.json is ignored" in caplog.text
    budgets.halve(7, 1000, torch.OutOfMemoryError("no memory"))
    assert [path.name for path in (tmp_path / "next").iterdir()] == ["budgets.json"]
    assert Budgets(1000, tmp_path, [tmp_path / "next"]).at(7) == 500


def test_a_budget_of_one_token_cannot_be_halved(tmp_path):
    error = torch.OutOfMemoryError("no memory")
    with pytest.raises(torch.OutOfMemoryError):
        Budgets(1, tmp_path).halve(0, 30, error)


def test_out_of_memory_on_a_cpu_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
