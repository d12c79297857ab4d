"""ListNet: cross-entropy between top-one distributions."""

from torch import Tensor

from trainer.objectives.distributions import log_shares


def list_net(scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over queries of -Σ_d p_d ln q_d with p = softmax(t), q = softmax(s); count of queries.

    Cao et al. 2007, eq. 5 with top-one probabilities (https://doi.org/10.1145/1273496.1273513).
    Its gradient is that of kl_div, its value is larger by the teacher's entropy; it takes labels
    too. Worked number: scores (0, 0), teacher scores (ln 3, 0) give ln 2 = 0.693147 over 1 query.
    """
    teacher_QD = log_shares(targets_QD, mask_QD)
    losses_QD = -teacher_QD.exp() * log_shares(scores_QD, mask_QD)
    return losses_QD[mask_QD].sum(), mask_QD.any(dim=-1).sum()
