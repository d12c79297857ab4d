"""Distributions over one query's documents."""

import torch
from torch import Tensor


def log_shares(values_QD: Tensor, mask_QD: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(values / temperature) among each query's own documents.

    What stands behind the mask takes no share and gets no gradient; its entries have no meaning.
    """
    # A finite floor: -inf would make the gradient of a query without documents NaN.
    floor = torch.finfo(values_QD.dtype).min
    return (values_QD / temperature).masked_fill(~mask_QD, floor).log_softmax(dim=-1)
