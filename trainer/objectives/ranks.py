"""Ranks of documents within their query."""

from torch import Tensor


def average_ranks(values_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """The rank of each document, fp32: 1 is the highest value, ties share their average rank.

    Values (3, 1, 3) have ranks (1.5, 3, 1.5). What stands behind the mask has no meaning.
    """
    others_QDD = mask_QD[:, None, :] & mask_QD[:, :, None]
    better_QDD = (values_QD[:, None, :] > values_QD[:, :, None]) & others_QDD
    tied_QDD = (values_QD[:, None, :] == values_QD[:, :, None]) & others_QDD
    return better_QDD.sum(dim=-1) + (tied_QDD.sum(dim=-1) + 1) / 2
