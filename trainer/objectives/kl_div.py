"""Divergence from a teacher's distribution over one query's documents."""

from torch import Tensor

from trainer.objectives.distributions import log_shares


def kl_div(
    scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sum over queries of Σ_d p_d ln(p_d / q_d); the count of queries.

    p = softmax(t / temperature) is the teacher's, q = softmax(s / temperature) the student's
    distribution. Hinton, Vinyals & Dean 2015, section 2 (https://arxiv.org/abs/1503.02531),
    without its factor temperature². Worked number: scores (0, 0), teacher scores (ln 3, 0) give
    p = (3/4, 1/4), q = (1/2, 1/2) and 3/4 ln 3/2 + 1/4 ln 1/2 = 0.130812 over 1 query.
    """
    teacher_QD = log_shares(targets_QD, mask_QD, temperature)
    student_QD = log_shares(scores_QD, mask_QD, temperature)
    losses_QD = teacher_QD.exp() * (teacher_QD - student_QD)
    return losses_QD[mask_QD].sum(), mask_QD.any(dim=-1).sum()
