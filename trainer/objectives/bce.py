"""Pointwise binary cross-entropy on logits."""

from torch import Tensor
from torch.nn.functional import softplus


def bce(scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over documents of -log σ(s) where the target is positive, else -log σ(-s); their count.

    Nogueira & Cho 2019, eq. 1 (https://arxiv.org/abs/1901.04085). Worked number: scores (2, 0),
    targets (1, 0) give log(1 + e^-2) + log 2 = 0.126928 + 0.693147 over 2 documents.
    """
    losses_QD = softplus(scores_QD.where(targets_QD <= 0, -scores_QD))
    return losses_QD[mask_QD].sum(), mask_QD.sum()
