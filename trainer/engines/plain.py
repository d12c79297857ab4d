"""The plain PyTorch engine: the reference for the DeepSpeed engine."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from xsweep.trainer.forward import Inputs, Scorer
from xsweep.trainer.optimizer import MOMENTS, build_adamw, clip, set_lr, write_weights
from xsweep.trainer.specs import OptimisationSpec


class PlainEngine:
    """AdamW on full replicas; sums gradients over backward passes, and over ranks in `step`."""

    can_agree = True
    """True if ranks exchange gradients only in `step`: before it they can agree on a failure."""

    def __init__(self, scorer: Scorer, settings: OptimisationSpec) -> None:
        self.rank, self.ranks = distributed.get_rank(), distributed.get_world_size()
        self.scorer, self.model = scorer, scorer.model
        self.max_norm = settings.clip
        self.adamw = build_adamw(scorer.model, settings)
        self.parameters = [p for p in scorer.parameters() if p.requires_grad]

    def __call__(self, forwards: Sequence[Inputs]) -> Tensor:
        """The logits of a micro-batch, as `Scorer` gives them."""
        return self.scorer(forwards)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's part of the global loss."""
        loss.backward()

    def discard(self) -> bool:
        """Drops the gradient after a failed backward pass; False if the engine cannot continue.

        If ranks cannot agree, the others wait in an exchange that never completes.
        """
        self.adamw.zero_grad()
        return True

    def step(self, lr: float) -> float:
        """Clips, updates the weights, clears the gradient; returns its norm before clipping."""
        if self.ranks > 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)
        set_lr(self.adamw, lr)
        norm = clip(self.parameters, self.max_norm)
        self.adamw.step()
        self.adamw.zero_grad()
        return norm

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state as `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`, fp32, unsharded.

        The same in every engine, so that a training can resume under another one. Parameters that
        never had a gradient have none.
        """
        return {
            f"{moment}.{name}": self.adamw.state[parameter][moment]
            for name, parameter in self.model.named_parameters()
            if parameter in self.adamw.state
            for moment in MOMENTS
        }

    def restore(self, weights: dict[str, Tensor], moments: dict[str, Tensor], steps: int) -> None:
        """Restores the weights and moments that `steps` updates have made."""
        write_weights(self.model, weights)
        for name, parameter in self.model.named_parameters():
            if f"{MOMENTS[0]}.{name}" in moments:
                state = {m: moments[f"{m}.{name}"].to(parameter.device).clone() for m in MOMENTS}
                step = torch.tensor(float(steps), device=parameter.device)
                self.adamw.state[parameter] = {"step": step, **state}
