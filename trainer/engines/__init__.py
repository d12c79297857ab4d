"""Engines: who holds the optimiser and moves the weights. Both give the same training."""

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from xsweep.trainer.forward import Inputs, Scorer
from xsweep.trainer.specs import OptimisationSpec


class Engine(Protocol):
    """Gradients are summed over backward passes and ranks until `step` uses them up."""

    rank: int
    ranks: int
    can_agree: bool
    """Whether ranks exchange gradients in `step` alone, so that all hear of one that failed."""

    def __call__(self, forwards: list[Inputs]) -> Tensor:
        """The logits of a micro-batch, see `Scorer`."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's part of the global loss."""
        ...

    def discard(self) -> bool:
        """Drops the gradient after a backward pass that failed; False where it cannot go on.

        Where ranks cannot agree the others wait in an exchange that never comes.
        """
        ...

    def step(self, lr: float) -> float:
        """Clips, updates the weights, clears the gradient; its norm before clipping."""
        ...

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state as `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`, fp32, whole.

        The same in every engine, so that a training may resume under another one.
        """
        ...

    def restore(self, weights: dict[str, Tensor], moments: dict[str, Tensor], steps: int) -> None:
        """Continues from weights and moments that `steps` updates have made."""
        ...


def open_engine(scorer: Scorer, settings: OptimisationSpec) -> AbstractContextManager[Engine]:
    """The engine that the settings name, with its process group, until the block ends."""
    if settings.engine == "deepspeed":
        from xsweep.trainer.engines.deepspeed import open_deepspeed

        return open_deepspeed(scorer, settings)
    from xsweep.trainer.engines.plain import open_plain

    return open_plain(scorer, settings)
