"""LambdaRank: RankNet whose pairs weigh what swapping them would change of nDCG."""

from torch import Tensor
from torch.nn.functional import softplus

from trainer.objectives.ranks import average_ranks


def lambda_rank(scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over ordered pairs with t_i > t_j of |ΔnDCG_ij| ln(1 + e^-(s_i - s_j)); count of pairs.

    |ΔnDCG_ij| = |g_i - g_j| |1/log2(1 + r_i) - 1/log2(1 + r_j)| / idealDCG, with gains
    g = 2^max(t, 0) - 1 and r the student's ranks (tied scores share their average rank), which
    have no gradient. Burges 2010, section 4 (Microsoft Research MSR-TR-2010-82), as eq. 16 of
    Wang et al. 2018 (https://doi.org/10.1145/3269206.3271784). Worked number: scores
    (0.5, 2, -1), the first relevant: its swaps with ranks 1 and 3 are worth 1 - 0.630930 and
    0.630930 - 0.5, so 0.369070 · 1.701413 + 0.130930 · 0.201413 = 0.654312 over 2 pairs.
    """
    gains_QD = (targets_QD.clamp(min=0).exp2() - 1) * mask_QD
    discounts_QD = (1 + average_ranks(scores_QD.detach(), mask_QD)).log2().reciprocal()
    best_first_QD = gains_QD.sort(dim=-1, descending=True).values
    places_D = best_first_QD.new_ones(best_first_QD.shape[-1]).cumsum(0)
    ideal_Q = (best_first_QD / (1 + places_D).log2()).sum(dim=-1).clamp(min=1e-10)
    weights_QDD = (
        (gains_QD[:, :, None] - gains_QD[:, None, :]).abs()
        * (discounts_QD[:, :, None] - discounts_QD[:, None, :]).abs()
        / ideal_Q[:, None, None]
    )
    preferred_QDD = (
        (targets_QD[:, :, None] > targets_QD[:, None, :])
        & mask_QD[:, :, None]
        & mask_QD[:, None, :]
    )
    margins_QDD = scores_QD[:, :, None] - scores_QD[:, None, :]
    losses_QDD = weights_QDD * softplus(-margins_QDD)
    return losses_QDD[preferred_QDD].sum(), preferred_QDD.sum()


def distill_lambda_rank(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor
) -> tuple[Tensor, Tensor]:
    """lambda_rank on a teacher's order: the target of a document is 1 / (its teacher's rank).

    The targets that Sun et al. 2023 (https://arxiv.org/abs/2304.09542) give to permutations of
    language models; tied targets share their average rank and give no pair. Worked number: scores
    (0.5, 2) in the teacher's own order have gains 1 and √2 - 1 and idealDCG 1.261340; the pair
    weighs 0.585786 · 0.369070 / 1.261340 = 0.171402 and costs 0.171402 · 1.701413 = 0.291626.
    """
    return lambda_rank(scores_QD, average_ranks(targets_QD, mask_QD).reciprocal(), mask_QD)
