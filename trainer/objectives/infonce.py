"""Localised contrastive estimation: softmax cross-entropy over one query's documents."""

from torch import Tensor

from trainer.objectives.distributions import log_shares


def infonce(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sum over positives of -log softmax(s / temperature) among the query's own documents.

    The count is the number of positives (target above 0); no in-batch negatives. Gao, Dai &
    Callan 2021, eq. 5 (https://arxiv.org/abs/2101.08751). Worked number: scores (2, 0.5, -1),
    the first relevant, give log(1 + e^-1.5 + e^-3) = 0.241311 over 1 positive.
    """
    log_shares_QD = log_shares(scores_QD, mask_QD, temperature)
    positives_QD = mask_QD & (targets_QD > 0)
    return -log_shares_QD[positives_QD].sum(), positives_QD.sum()
