"""Pairwise hinge between the positive in column 0 and every other document."""

from torch import Tensor


def hinge(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor, margin: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sum over (column 0, column j) of max(0, margin - s_0 + s_j); the count of those pairs.

    Joachims 2002 (https://doi.org/10.1145/775047.775067). Worked number: scores (2, 0.5, 1.5)
    give 0 + 0.5 over 2 pairs.
    """
    pairs_QP = mask_QD[:, :1] & mask_QD[:, 1:]
    losses_QP = (margin - scores_QD[:, :1] + scores_QD[:, 1:]).relu()
    return losses_QP[pairs_QP].sum(), pairs_QP.sum()
