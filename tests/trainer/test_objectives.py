import math
import subprocess
import sys

import pytest
import torch
from torch import tensor

from trainer.objectives import OBJECTIVES
from trainer.objectives.signals import PARAMETERS, SIGNALS

NAMES = list(OBJECTIVES)
SCORES = tensor([[2.0, 0.5, -1.0]])
ORDER = tensor([[3.0, 2.0, 1.0]])
ALL = torch.ones(1, 3, dtype=torch.bool)


def mean(name, scores_QD, targets_QD, mask_QD=None, **parameters):
    mask_QD = torch.ones_like(scores_QD, dtype=torch.bool) if mask_QD is None else mask_QD
    total, count = OBJECTIVES[name].function(scores_QD, targets_QD, mask_QD, **parameters)
    return (total / count).item()


def random_batch(seed=0, queries=4, documents=5, dtype=torch.float32):
    torch.manual_seed(seed)
    scores_QD = torch.randn(queries, documents, dtype=dtype)
    targets_QD = torch.randn(queries, documents, dtype=dtype)
    mask_QD = torch.ones(queries, documents, dtype=torch.bool)
    mask_QD[1, 3:] = False
    return scores_QD, targets_QD, mask_QD


# The numbers below were worked out by hand from the formulas in the docstrings.


@pytest.mark.parametrize(
    ("name", "targets", "expected"),
    [
        ("bce", [1.0, 0, 0], (0.126928 + 0.974077 + 0.313262) / 3),
        ("hinge", [1.0, 0, 0], 0.0),
        ("infonce", [1.0, 0, 0], 0.241311),
        ("margin_mse", [10.0, 7, 6], ((1.5 - 3) ** 2 + (3 - 4) ** 2) / 2),
        ("distill_ranknet", [3.0, 2, 1], 0.150471),
        ("adr_mse", [3.0, 2, 1], 0.026416),
    ],
)
def test_each_objective_gives_its_hand_worked_number(name, targets, expected):
    assert mean(name, SCORES, tensor([targets])) == pytest.approx(expected, abs=1e-6)


def test_hinge_counts_only_violated_margins():
    assert mean("hinge", tensor([[2.0, 0.5, 1.5]]), tensor([[1.0, 0, 0]])) == 0.25
    assert mean("hinge", tensor([[2.0, 0.5, 1.5]]), tensor([[1.0, 0, 0]]), margin=2.0) == 1.0


def test_adr_mse_gives_tied_targets_their_average_rank():
    # Ranks 1.5, 1.5, 3 against approximate ranks 1.2299, 2, 2.7701.
    losses = [
        (1.5 - 1.229850) ** 2 / math.log2(2.5),
        0.25 / math.log2(2.5),
        (3 - 2.770150) ** 2 / 2,
    ]
    assert mean("adr_mse", SCORES, tensor([[2.0, 2, 1]])) == pytest.approx(
        sum(losses) / 3, abs=1e-5
    )


def test_ranknet_takes_no_pair_from_a_tie():
    _, count = OBJECTIVES["distill_ranknet"].function(SCORES, tensor([[2.0, 2, 1]]), ALL)
    assert count == 2


def test_temperature_divides_the_scores_of_infonce():
    targets = tensor([[1.0, 0, 0]])
    assert mean("infonce", SCORES, targets, temperature=0.5) == pytest.approx(
        mean("infonce", 2 * SCORES, targets)
    )


@pytest.mark.parametrize("name", ["bce", "hinge", "infonce"])
def test_a_perfect_order_of_labels_costs_nothing_and_a_reversed_one_much(name):
    labels = tensor([[1.0, 0, 0]])
    assert mean(name, tensor([[50.0, -50, -50]]), labels) < 1e-6
    assert mean(name, tensor([[-50.0, 50, 50]]), labels) > 10


@pytest.mark.parametrize("name", ["distill_ranknet", "adr_mse"])
def test_a_perfect_order_of_a_teacher_costs_nothing_and_a_reversed_one_more(name):
    assert mean(name, 50 * ORDER, ORDER) < 1e-6
    assert mean(name, -50 * ORDER, ORDER) > 0.5


def test_margin_mse_is_zero_when_margins_agree_whatever_the_offset():
    assert mean("margin_mse", ORDER + 7, ORDER - 3) == 0


@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_finite_differences(name):
    scores_QD, targets_QD, mask_QD = random_batch(dtype=torch.float64)
    scores_QD.requires_grad_()
    function = OBJECTIVES[name].function
    assert torch.autograd.gradcheck(lambda s: function(s, targets_QD, mask_QD)[0], scores_QD)


@pytest.mark.parametrize("name", NAMES)
def test_large_logits_do_not_overflow(name):
    scores_QD = (1e4 * ORDER).requires_grad_()
    total, _ = OBJECTIVES[name].function(scores_QD, -ORDER, ALL)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(scores_QD.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_behind_the_mask_matters(name):
    scores_QD, targets_QD, mask_QD = random_batch()
    function = OBJECTIVES[name].function
    expected = function(scores_QD, targets_QD, mask_QD)
    changed = function(
        scores_QD.where(mask_QD, tensor(99.0)), targets_QD.where(mask_QD, tensor(9.0)), mask_QD
    )
    torch.testing.assert_close(changed, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_with_everything_masked_gives_zero_and_finite_gradients(name):
    scores_QD = SCORES.clone().requires_grad_()
    total, count = OBJECTIVES[name].function(scores_QD, ORDER, ~ALL)
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert not scores_QD.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_single_document_is_no_error(name):
    total, _ = OBJECTIVES[name].function(tensor([[1.0]]), tensor([[1.0]]), tensor([[True]]))
    assert torch.isfinite(total)


@pytest.mark.parametrize("name", NAMES)
def test_sums_and_counts_add_up_over_queries(name):
    scores_QD, targets_QD, mask_QD = random_batch()
    function = OBJECTIVES[name].function
    whole = function(scores_QD, targets_QD, mask_QD)
    parts = [
        function(scores_QD[q : q + 1], targets_QD[q : q + 1], mask_QD[q : q + 1]) for q in range(4)
    ]
    torch.testing.assert_close(sum(total for total, _ in parts), whole[0])
    assert sum(count for _, count in parts) == whole[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_count_does_not_depend_on_the_scores(name):
    scores_QD, targets_QD, mask_QD = random_batch()
    function = OBJECTIVES[name].function
    counts = [function(s, targets_QD, mask_QD)[1] for s in (scores_QD, torch.zeros(4, 5))]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", ["distill_ranknet", "adr_mse", "infonce", "bce"])
def test_the_order_of_the_documents_does_not_matter(name):
    scores_QD, targets_QD, mask_QD = random_batch()
    order = torch.tensor([3, 0, 4, 1, 2])
    function = OBJECTIVES[name].function
    torch.testing.assert_close(
        function(scores_QD[:, order], targets_QD[:, order], mask_QD[:, order]),
        function(scores_QD, targets_QD, mask_QD),
    )


def test_the_same_losses_come_out_of_sentence_transformers():
    from sentence_transformers.cross_encoder import losses

    class Model(torch.nn.Module):
        """What the peer's losses ask of a model: a device, one label, and logits for pairs."""

        num_labels, device, max_length = 1, torch.device("cpu"), 8

        def __init__(self, scores_QD):
            super().__init__()
            self.logits = {str(score): score for score in scores_QD.flatten().tolist()}

        def preprocess(self, pairs, **_):
            return {"pairs": pairs}

        def tokenizer(self, pairs, **_):
            return self

        def to(self, _):
            return self

        def forward(self, features):
            pairs = features["pairs"]
            logits = tensor([[self.logits[document]] for _, document in pairs])
            return {"logits": logits, "scores": logits[:, 0]}

    scores_QD, targets_QD, _ = random_batch()
    documents = [[str(score) for score in row] for row in scores_QD.tolist()]
    queries = [f"q{number}" for number in range(4)]
    model = Model(scores_QD)

    def peer(kind):
        loss = getattr(losses, kind)(model, activation_fn=None)
        return loss([queries, documents], list(targets_QD)).item()

    # The peer's RankNet takes base-2 logarithms: larger by 1 / ln 2.
    assert peer("RankNetLoss") * math.log(2) == pytest.approx(
        mean("distill_ranknet", scores_QD, targets_QD), rel=1e-5
    )
    assert peer("ADRMSELoss") == pytest.approx(mean("adr_mse", scores_QD, targets_QD), rel=1e-5)


def test_every_objective_names_its_signals_and_parameters():
    assert list(SIGNALS) == list(PARAMETERS) == NAMES


def test_the_table_of_signals_costs_no_torch():
    code = "import sys, trainer.specs; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
