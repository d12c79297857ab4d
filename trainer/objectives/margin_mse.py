"""Distillation of a teacher's score margins."""

from torch import Tensor


def margin_mse(scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over columns j >= 1 of ((s_0 - s_j) - (t_0 - t_j))²; the count of those pairs.

    Hofstätter et al. 2020, eq. 7 (https://arxiv.org/abs/2010.02666). Worked number: scores
    (2, 0.5), teacher scores (10, 7) give (1.5 - 3)² = 2.25 over 1 pair.
    """
    pairs_QP = mask_QD[:, :1] & mask_QD[:, 1:]
    margins_QP = scores_QD[:, :1] - scores_QD[:, 1:]
    teacher_margins_QP = targets_QD[:, :1] - targets_QD[:, 1:]
    return (margins_QP - teacher_margins_QP)[pairs_QP].square().sum(), pairs_QP.sum()
