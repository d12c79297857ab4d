import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import tensor

from xsweep.trainer.objectives import OBJECTIVES

NAMES = list(OBJECTIVES)
SCORES = tensor([[2.0, 0.5, -1.0]])
ORDER = tensor([[3.0, 2.0, 1.0]])
ALL = torch.ones(1, 3, dtype=torch.bool)
LN2 = math.log(2)


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
        ("mse", [3.0, 0, -1], (1 + 0.25 + 0) / 3),
        # q = (0.785597, 0.175290, 0.039113), p = (2, 1, 1) / 4.
        ("kl_div", [LN2, 0, 0], 0.5 * -0.451836 + 0.25 * 0.355017 + 0.25 * 1.855017),
        ("list_net", [LN2, 0, 0], 0.5 * 0.241311 + 0.25 * 1.741311 + 0.25 * 3.241311),
        # The positive is at rank 1: swaps with ranks 2 and 3 cost 0.369070 and 0.5.
        ("lambda_rank", [1.0, 0, 0], (0.369070 * 0.201413 + 0.5 * 0.048587) / 2),
    ],
)
def test_each_objective_gives_its_hand_worked_number(name, targets, expected):
    assert mean(name, SCORES, tensor([targets])) == pytest.approx(expected, abs=1e-6)


def test_hinge_counts_only_violated_margins():
    assert mean("hinge", tensor([[2.0, 0.5, 1.5]]), tensor([[1.0, 0, 0]])) == 0.25
    assert mean("hinge", tensor([[2.0, 0.5, 1.5]]), tensor([[1.0, 0, 0]]), margin=2.0) == 1.0


def test_hinge_takes_every_positive_against_every_negative():
    # Pairs (0, 1) and (2, 1) of scores (2, 0.5, 1): margins 1.5 and 0.5.
    assert mean("hinge", tensor([[2.0, 0.5, 1.0]]), tensor([[1.0, 0, 1]])) == 0.25


def test_lists_of_eight_give_bce_a_term_for_each_document_and_hinge_one_for_each_negative():
    # One positive at 1 and seven negatives at 0: the negatives cost ln 2 each, their margins 0.
    scores_QD, labels_QD = tensor([[1.0] + 7 * [0.0]]), tensor([[1.0] + 7 * [0.0]])
    positive = math.log(1 + math.exp(-1))
    assert mean("bce", scores_QD, labels_QD) == pytest.approx((positive + 7 * LN2) / 8)
    assert mean("bce", scores_QD, labels_QD, positive_weight=7.0) == pytest.approx(
        (7 * positive + 7 * LN2) / 8
    )
    assert mean("hinge", scores_QD - 0.5, labels_QD, margin=1.5) == pytest.approx(0.5)


def test_lambda_rank_weighs_a_pair_by_the_ndcg_change_of_its_swap():
    scores_QD = tensor([[0.5, 2.0, -1.0]])
    assert mean("lambda_rank", scores_QD, tensor([[1.0, 0, 0]])) == pytest.approx(0.654312 / 2)
    assert mean("distill_lambda_rank", tensor([[0.5, 2.0]]), tensor([[5.0, 3]])) == pytest.approx(
        0.291626, abs=1e-6
    )


def test_lambda_rank_gives_tied_scores_equal_ranks_and_no_weight():
    assert mean("lambda_rank", tensor([[1.0, 1.0]]), tensor([[1.0, 0]])) == 0


def test_list_net_is_kl_div_plus_the_teachers_entropy():
    scores_QD, targets_QD, mask_QD = random_batch()
    shares_QD = targets_QD.masked_fill(~mask_QD, -1e9).softmax(-1)
    entropy = torch.special.entr(shares_QD).sum().item() / 4
    assert mean("list_net", scores_QD, targets_QD, mask_QD) == pytest.approx(
        mean("kl_div", scores_QD, targets_QD, mask_QD) + entropy
    )


def test_temperature_softens_both_sides_of_kl_div():
    assert mean("kl_div", SCORES, ORDER, temperature=2.0) == pytest.approx(
        mean("kl_div", SCORES / 2, ORDER / 2)
    )


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


@pytest.mark.parametrize("name", ["bce", "hinge", "infonce", "lambda_rank"])
def test_a_perfect_order_of_labels_has_no_loss_and_a_reversed_one_a_large_loss(name):
    labels = tensor([[1.0, 0, 0]])
    assert mean(name, tensor([[50.0, -50, -50]]), labels) < 1e-6
    assert mean(name, tensor([[-50.0, 50, 50]]), labels) > 10


@pytest.mark.parametrize("name", ["distill_ranknet", "adr_mse", "distill_lambda_rank"])
def test_the_teachers_order_has_no_loss_and_the_reversed_order_has_one(name):
    assert mean(name, 50 * ORDER, ORDER) < 1e-6
    assert mean(name, -50 * ORDER, ORDER) > 0.5


def test_margin_mse_is_zero_when_margins_agree_whatever_the_offset():
    assert mean("margin_mse", ORDER + 7, ORDER - 3) == 0


@pytest.mark.parametrize("name", ["mse", "kl_div"])
def test_the_teachers_scores_have_no_loss_and_reversed_scores_have_one(name):
    assert mean(name, ORDER, ORDER) == pytest.approx(0, abs=1e-7)
    assert mean(name, ORDER.flip(1), ORDER) > 0.5


@pytest.mark.parametrize("name", ["distill_ranknet", "lambda_rank", "distill_lambda_rank"])
def test_tied_targets_give_no_pair(name):
    _, count = OBJECTIVES[name].function(SCORES, torch.ones(1, 3), ALL)
    assert count == 0


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
def test_padding_does_not_change_the_loss(name):
    scores_QD, targets_QD, mask_QD = random_batch()
    function = OBJECTIVES[name].function
    expected = function(scores_QD, targets_QD, mask_QD)
    changed = function(
        scores_QD.where(mask_QD, tensor(99.0)), targets_QD.where(mask_QD, tensor(9.0)), mask_QD
    )
    torch.testing.assert_close(changed, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_padding_gives_zero_and_no_gradient(name):
    scores_QD = SCORES.clone().requires_grad_()
    total, count = OBJECTIVES[name].function(scores_QD, ORDER, ~ALL)
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert not scores_QD.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_single_document_has_a_finite_loss(name):
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


@pytest.mark.parametrize("name", [name for name in NAMES if name != "margin_mse"])
def test_the_order_of_the_documents_does_not_matter(name):
    scores_QD, targets_QD, mask_QD = random_batch()
    order = torch.tensor([3, 0, 4, 1, 2])
    function = OBJECTIVES[name].function
    torch.testing.assert_close(
        function(scores_QD[:, order], targets_QD[:, order], mask_QD[:, order]),
        function(scores_QD, targets_QD, mask_QD),
    )


def peer_loss(kind, scores_QD, labels, *, as_columns=False, **settings):
    """A loss of sentence-transformers on given logits, through a model that returns them."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import losses

    class Model(CrossEncoder):
        """The interface that the losses need: a device, one label, and logits for pairs."""

        num_labels, device, max_length = 1, torch.device("cpu"), 8

        def __init__(self):
            torch.nn.Module.__init__(self)
            self.logits = {str(score): score for score in scores_QD.flatten().tolist()}

        def preprocess(self, pairs, **_):
            return {"pairs": pairs}

        def forward(self, features):
            logits = tensor([[self.logits[document]] for _, document in features["pairs"]])
            return {"logits": logits, "scores": logits[:, 0]}

    documents = [[str(score) for score in row] for row in scores_QD.tolist()]
    queries = [f"q{number}" for number in range(len(documents))]
    columns = list(zip(*documents, strict=True)) if as_columns else [documents]
    loss = getattr(losses, kind)(Model(), **settings)
    return loss([queries, *columns], labels).item()


@pytest.mark.parametrize(
    ("name", "kind", "settings", "factor"),
    [
        # The peer's RankNet takes base-2 logarithms: larger by 1 / ln 2.
        ("distill_ranknet", "RankNetLoss", {}, LN2),
        ("adr_mse", "ADRMSELoss", {}, 1),
        ("list_net", "ListNetLoss", {}, 1),
    ],
)
def test_list_losses_equal_those_of_sentence_transformers(name, kind, settings, factor):
    scores_QD, targets_QD, _ = random_batch()
    theirs = peer_loss(kind, scores_QD, list(targets_QD), **settings)
    assert theirs * factor == pytest.approx(mean(name, scores_QD, targets_QD), rel=1e-5)


def test_lambda_rank_equals_that_of_sentence_transformers_with_lambda_rank_weights():
    from sentence_transformers.cross_encoder.losses import LambdaRankScheme

    scores_QD, _, _ = random_batch()
    grades_QD = tensor([[3.0, 0, 1, 0, 2], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 2, 2, 1, 0]])
    settings = {"weighting_scheme": LambdaRankScheme(), "reduction_log": "natural"}
    theirs = peer_loss("LambdaLoss", scores_QD, list(grades_QD), **settings)
    assert theirs == pytest.approx(mean("lambda_rank", scores_QD, grades_QD), rel=1e-5)


def test_pair_losses_equal_those_of_sentence_transformers():
    scores_QD, targets_QD, _ = random_batch()
    theirs = peer_loss("MarginMSELoss", scores_QD, list(targets_QD), as_columns=True)
    assert theirs == pytest.approx(mean("margin_mse", scores_QD, targets_QD), rel=1e-5)
    column = scores_QD.reshape(-1, 1), targets_QD.reshape(-1, 1)
    theirs = peer_loss("MSELoss", column[0], column[1][:, 0], as_columns=True)
    assert theirs == pytest.approx(mean("mse", scores_QD, targets_QD), rel=1e-5)
    labels = (column[1][:, 0] > 0).float()
    for weight in (1.0, 7.0):
        settings = {"as_columns": True, "pos_weight": tensor(weight)}
        theirs = peer_loss("BinaryCrossEntropyLoss", column[0], labels, **settings)
        ours = mean("bce", scores_QD, targets_QD, positive_weight=weight)
        assert theirs == pytest.approx(ours, rel=1e-5)


PEER = os.environ.get("XSWEEP_LIGHTNING_IR_PYTHON")


@pytest.mark.skipif(not PEER, reason="XSWEEP_LIGHTNING_IR_PYTHON names no Python with lightning-ir")
def test_losses_equal_those_of_lightning_ir():
    scores_QD, targets_QD, _ = random_batch()
    labels_QD = torch.eye(4, 5)
    program = Path(__file__).with_name("lightning_ir_losses.py")
    given = {name: t.tolist() for name, t in (("scores", scores_QD), ("targets", targets_QD))}
    command = [PEER, program, json.dumps(given | {"labels": labels_QD.tolist()})]
    theirs = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    ours = {
        "infonce": mean("infonce", scores_QD, labels_QD),
        "distill_ranknet": mean("distill_ranknet", scores_QD, targets_QD),
        "margin_mse": mean("margin_mse", scores_QD[:, :2], targets_QD[:, :2]),
        "adr_mse": mean("adr_mse", scores_QD, targets_QD),
        "kl_div": mean("kl_div", scores_QD, targets_QD),
    }
    assert theirs == pytest.approx(ours, rel=1e-5)


def test_every_objective_names_its_signals_and_parameters():
    temperature = {"temperature": 1.0}
    expected = {
        "bce": ({"labels"}, {"positive_weight": 1.0}),
        "hinge": ({"labels"}, {"margin": 1.0}),
        "infonce": ({"labels"}, temperature),
        "margin_mse": ({"scores"}, {}),
        "distill_ranknet": ({"scores", "ranking"}, {}),
        "adr_mse": ({"scores", "ranking"}, temperature),
        "mse": ({"scores"}, {}),
        "kl_div": ({"scores"}, temperature),
        "list_net": ({"labels", "scores"}, {}),
        "lambda_rank": ({"labels"}, {}),
        "distill_lambda_rank": ({"scores", "ranking"}, {}),
    }
    found = {name: (set(OBJECTIVES[name].signals), OBJECTIVES[name].parameters) for name in NAMES}
    assert found | expected == found


def test_importing_specifications_imports_neither_torch_nor_numpy():
    code = "import sys, xsweep.trainer.specs; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
