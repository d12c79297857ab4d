"""Pointwise binary cross-entropy on logits."""

from torch import Tensor
from torch.nn.functional import softplus


def bce(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor, positive_weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sum over documents of -w log σ(s) where the target is positive, else -log σ(-s); their count.

    w is `positive_weight`: in lists of 1 positive and 7 negatives, 7 gives both sides the same
    weight. Nogueira & Cho 2019, eq. 1 (https://arxiv.org/abs/1901.04085). Worked number: scores
    (2, 0), targets (1, 0) give log(1 + e^-2) + log 2 = 0.126928 + 0.693147 over 2 documents.
    """
    positive_QD = targets_QD > 0
    losses_QD = softplus(scores_QD.where(~positive_QD, -scores_QD))
    if positive_weight != 1:
        losses_QD = losses_QD * (1 + positive_QD * (positive_weight - 1))
    return losses_QD[mask_QD].sum(), mask_QD.sum()
