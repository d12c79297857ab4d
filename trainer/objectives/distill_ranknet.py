"""RankNet on a teacher's order."""

from torch import Tensor
from torch.nn.functional import softplus


def distill_ranknet(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum over ordered pairs with t_i > t_j of ln(1 + e^-(s_i - s_j)); the count of those pairs.

    Natural logarithm; ties in the teacher give no pair. Burges et al. 2005, eq. 3
    (https://doi.org/10.1145/1102351.1102363); on permutations of language models: Sun et al.
    2023 (https://arxiv.org/abs/2304.09542). Worked number: scores (2, 0.5, -1) in the teacher's
    own order give (0.201413 + 0.048587 + 0.201413) over 3 pairs, a mean of 0.150471.
    """
    preferred_QDD = (
        (targets_QD[:, :, None] > targets_QD[:, None, :])
        & mask_QD[:, :, None]
        & mask_QD[:, None, :]
    )
    margins_QDD = scores_QD[:, :, None] - scores_QD[:, None, :]
    return softplus(-margins_QDD[preferred_QDD]).sum(), preferred_QDD.sum()
