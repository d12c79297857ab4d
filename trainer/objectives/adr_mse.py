"""Approximate discounted rank mean squared error."""

from torch import Tensor

from trainer.objectives.ranks import average_ranks


def adr_mse(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sum over documents of (r - r̂)² / log2(1 + r); the count of documents.

    r is the teacher's rank among the query's documents (1 is best, tied targets share their
    average rank), r̂_i = 1 + Σ_{j≠i} σ((s_j - s_i) / temperature) approximates the student's.
    Schlatt et al. 2025, section 3 (https://arxiv.org/abs/2405.07920). Worked number: scores
    (2, 0.5, -1) in the teacher's own order have approximate ranks 1.2299, 2, 2.7701; the mean
    over the 3 documents is 0.026416.
    """
    others_QDD = mask_QD[:, None, :] & mask_QD[:, :, None]
    above_QDD = ((scores_QD[:, None, :] - scores_QD[:, :, None]) / temperature).sigmoid()
    # A document is counted against itself as σ(0) = 1/2, so the sum starts at 1/2, not at 1.
    approximate_ranks_QD = 0.5 + (above_QDD * others_QDD).sum(dim=-1)
    ranks_QD = average_ranks(targets_QD, mask_QD)
    losses_QD = (ranks_QD - approximate_ranks_QD).square() / (1 + ranks_QD).log2()
    return losses_QD[mask_QD].sum(), mask_QD.sum()
