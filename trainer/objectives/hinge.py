"""Pairwise hinge between every positive and every other document of its query."""

from torch import Tensor


def hinge(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor, margin: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sum over ordered pairs with t_i > t_j of max(0, margin - s_i + s_j); the count of pairs.

    With one positive and k negatives these are k pairs. Joachims 2002
    (https://doi.org/10.1145/775047.775067). Worked number: scores (2, 0.5, 1.5), the first
    relevant, give 0 + 0.5 over 2 pairs.
    """
    preferred_QDD = (
        (targets_QD[:, :, None] > targets_QD[:, None, :])
        & mask_QD[:, :, None]
        & mask_QD[:, None, :]
    )
    losses_QDD = (margin - scores_QD[:, :, None] + scores_QD[:, None, :]).relu()
    return losses_QDD[preferred_QDD].sum(), preferred_QDD.sum()
