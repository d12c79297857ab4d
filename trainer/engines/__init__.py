"""Engines hold the optimiser and update the weights; each gives the same training."""

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from xsweep.trainer.forward import Inputs, Scorer
from xsweep.trainer.specs import OptimisationSpec


class Engine(Protocol):
    """Sums gradients over backward passes and ranks until `step` applies them."""

    rank: int
    ranks: int
    can_agree: bool
    """True if ranks exchange gradients only in `step`: before it they can agree on a failure."""

    def __call__(self, forwards: list[Inputs]) -> Tensor:
        """The logits of a micro-batch, as `Scorer` gives them."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's part of the global loss."""
        ...

    def discard(self) -> bool:
        """Drops the gradient after a failed backward pass; False if the engine cannot continue.

        If ranks cannot agree, the others wait in an exchange that never completes.
        """
        ...

    def step(self, lr: float) -> float:
        """Clips, updates the weights, clears the gradient; returns its norm before clipping."""
        ...

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state as `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`, fp32, unsharded.

        The same in every engine, so that a training can resume under another one.
        """
        ...

    def restore(self, weights: dict[str, Tensor], moments: dict[str, Tensor], steps: int) -> None:
        """Restores the weights and moments that `steps` updates have made."""
        ...


def open_engine(scorer: Scorer, settings: OptimisationSpec) -> AbstractContextManager[Engine]:
    """Opens the engine that the settings name, and its process group, until the block ends."""
    if settings.engine == "deepspeed":
        from xsweep.trainer.engines.deepspeed import open_deepspeed

        return open_deepspeed(scorer, settings)
    from xsweep.trainer.engines.plain import open_plain

    return open_plain(scorer, settings)
