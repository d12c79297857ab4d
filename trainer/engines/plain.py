"""The plain PyTorch engine: the reference for the DeepSpeed engine."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, distributed

from xsweep.trainer.distributed import Ranks, process_group
from xsweep.trainer.forward import Inputs, Scorer
from xsweep.trainer.optimizer import (
    build_adamw,
    clip,
    read_moments,
    set_lr,
    write_moments,
    write_weights,
)
from xsweep.trainer.specs import OptimisationSpec


@contextmanager
def open_plain(scorer: Scorer, settings: OptimisationSpec) -> Iterator["PlainEngine"]:
    """Opens the engine and its process group."""
    with process_group() as ranks:
        yield PlainEngine(scorer, settings, ranks)


class PlainEngine:
    """AdamW on full replicas; gradients are summed over the ranks before a step."""

    can_agree = True

    def __init__(self, scorer: Scorer, settings: OptimisationSpec, ranks: Ranks) -> None:
        self.rank, self.ranks = ranks
        self.scorer = scorer
        self.max_norm = settings.clip
        self.optimizer = build_adamw(scorer.model, settings)
        self.parameters = [p for p in scorer.parameters() if p.requires_grad]

    def __call__(self, forwards: list[Inputs]) -> Tensor:
        return self.scorer(forwards)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def discard(self) -> bool:
        self.optimizer.zero_grad()
        return True

    def step(self, lr: float) -> float:
        if self.ranks > 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)
        set_lr(self.optimizer, lr)
        norm = clip(self.parameters, self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def moments(self) -> dict[str, Tensor]:
        return read_moments(self.scorer.model, self.optimizer)

    def restore(self, weights: dict[str, Tensor], moments: dict[str, Tensor], steps: int) -> None:
        write_weights(self.scorer.model, weights)
        write_moments(self.scorer.model, self.optimizer, moments, steps)
