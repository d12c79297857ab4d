"""The plain torch engine: the reference for the other one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from xsweep.trainer.distributed import Ranks, process_group
from xsweep.trainer.forward import Inputs, Scorer
from xsweep.trainer.optimizer import build_adamw, clip, read_moments, set_lr, write_moments
from xsweep.trainer.specs import OptimisationSpec


@contextmanager
def open_plain(scorer: Scorer, settings: OptimisationSpec) -> Iterator["PlainEngine"]:
    """The engine and its process group."""
    with process_group() as ranks:
        yield PlainEngine(scorer, settings, ranks)


class PlainEngine:
    """AdamW on whole replicas; gradients are summed over the ranks before a step."""

    can_agree = True

    def __init__(self, scorer: Scorer, settings: OptimisationSpec, ranks: Ranks) -> None:
        self.rank, self.ranks = ranks
        self.scorer = scorer
        self.largest_norm = settings.clip
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
        norm = clip(self.parameters, self.largest_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def moments(self) -> dict[str, Tensor]:
        return read_moments(self.scorer.model, self.optimizer)

    def restore(self, weights: dict[str, Tensor], moments: dict[str, Tensor], steps: int) -> None:
        with torch.no_grad():
            for name, parameter in self.scorer.model.named_parameters():
                parameter.copy_(weights[name])
        write_moments(self.scorer.model, self.optimizer, moments, steps)
