"""The plain PyTorch engine: the reference for the DeepSpeed engine."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from xsweep.trainer.distributed import GradientBuckets
from xsweep.trainer.forward import Inputs, Scorer
from xsweep.trainer.optimizer import MOMENTS, build_adamw, clip, set_lr, write_weights
from xsweep.trainer.specs import OptimisationSpec


class PlainEngine:
    """AdamW on full replicas; sums gradients over backward passes, and over ranks in `step`."""

    has_buckets = True
    """True if this class sums the gradients over ranks itself."""

    def __init__(self, scorer: Scorer, settings: OptimisationSpec) -> None:
        self.rank, self.ranks = distributed.get_rank(), distributed.get_world_size()
        self.scorer, self.model = scorer, scorer.model
        self.max_norm = settings.clip
        self.adamw = build_adamw(scorer.model, settings)
        self.parameters = [p for p in scorer.parameters() if p.requires_grad]
        exchanges = self.ranks > 1 and self.has_buckets
        self.buckets = GradientBuckets(self.parameters) if exchanges else None

    def __call__(self, forwards: Sequence[Inputs], seeds: Sequence[int] = ()) -> Tensor:
        """The logits of some forward passes, as `Scorer` gives them."""
        return self.scorer(forwards, seeds)

    def backward(self, loss: Tensor, *, last: bool = False) -> None:
        """Adds the gradient of this rank's part of the global loss; `last` in the step begins to
        exchange gradients while it computes others."""
        if self.buckets and last:
            self.buckets.overlap()
        loss.backward()

    def end_pass(self) -> None:
        """Ends a backward pass; also a rank on which it failed or was left out takes part."""

    def reduce(self) -> None:
        """Ends the exchange of gradients between ranks; also a rank that failed takes part."""
        if self.buckets:
            self.buckets.reduce()

    def discard(self) -> None:
        """Drops the gradient of all backward passes since the last step."""
        self._clear()

    def step(self, lr: float) -> float:
        """Clips, updates the weights, clears the gradient; returns its norm before clipping."""
        if self.buckets:
            self.buckets.hide_unused()
        set_lr(self.adamw, lr)
        norm = clip(self.parameters, self.max_norm)
        self.adamw.step()
        self._clear()
        return norm

    def _clear(self) -> None:
        if self.buckets:
            self.buckets.clear()
        else:
            self.adamw.zero_grad()

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
