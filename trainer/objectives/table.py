"""The table of objectives: each function beside the signals that can feed it."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from trainer.objectives.adr_mse import adr_mse
from trainer.objectives.bce import bce
from trainer.objectives.distill_ranknet import distill_ranknet
from trainer.objectives.hinge import hinge
from trainer.objectives.infonce import infonce
from trainer.objectives.kl_div import kl_div
from trainer.objectives.lambda_rank import distill_lambda_rank, lambda_rank
from trainer.objectives.list_net import list_net
from trainer.objectives.margin_mse import margin_mse
from trainer.objectives.mse import mse
from trainer.objectives.signals import SIGNALS, Signal


class Objective(NamedTuple):
    """A loss and what it can learn from."""

    function: Callable[..., tuple[Tensor, Tensor]]
    signals: frozenset[Signal]


OBJECTIVES = {
    function.__name__: Objective(function, SIGNALS[function.__name__])
    for function in (
        bce,
        hinge,
        infonce,
        margin_mse,
        distill_ranknet,
        adr_mse,
        mse,
        kl_div,
        list_net,
        lambda_rank,
        distill_lambda_rank,
    )
}
