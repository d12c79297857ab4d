"""Regression on a teacher's scores."""

from torch import Tensor


def mse(scores_QD: Tensor, targets_QD: Tensor, mask_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over documents of (s - t)²; the count of documents.

    Ba & Caruana 2014, eq. 1 (https://arxiv.org/abs/1312.6184). Unlike margin_mse it also learns
    the level of the teacher's scores, which no ranking needs. Worked number: scores (2, 0.5),
    teacher scores (3, 0) give 1 + 0.25 over 2 documents.
    """
    return (scores_QD - targets_QD)[mask_QD].square().sum(), mask_QD.sum()
