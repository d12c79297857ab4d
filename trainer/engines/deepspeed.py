"""The DeepSpeed engine: ZeRO 0, 1 or 2 around our optimiser, schedule and autocast.

DeepSpeed's own optimisers, schedulers and bf16 modes are not used: their meaning changed within
2026, and its autocast would reduce gradients in bf16. The caller ends a step
(`managed_gradient_accumulation`), and gradients are summed over ranks, not averaged, since the
loss is already divided by the global count. Needs DeepSpeed 0.19.6 or later.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xsweep.trainer.distributed import BUCKET_NUMBERS
from xsweep.trainer.engines.plain import PlainEngine
from xsweep.trainer.forward import Inputs, Scorer
from xsweep.trainer.optimizer import MOMENTS, clip, set_lr, trained_parameters, write_weights
from xsweep.trainer.specs import OptimisationSpec


def load_deepspeed() -> Any:
    """Imports DeepSpeed without log output, for the device that torch sees."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed

    # Otherwise it runs compilers to find out which of its operators could be built, and on a CPU it
    # builds one (half a minute with g++) to exchange through shared memory. None is used here.
    deepspeed.ops.__dict__["__compatible_ops__"] = {}
    return deepspeed


class DeepSpeedEngine(PlainEngine):
    """AdamW under DeepSpeed; in stage 0 its state is that of the plain engine."""

    has_buckets = False

    def __init__(self, deepspeed: Any, scorer: Scorer, settings: OptimisationSpec) -> None:
        super().__init__(scorer, settings)
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        self.stage = settings.zero_stage
        self.norm = 0.0
        if self.stage == 0:
            # It does not report the norm, so we clip ourselves, between reduction and update.
            self.adamw.register_step_pre_hook(self._clip)
        # The defaults are buffers for 500 million numbers, five times a BERT-base.
        numbers = min(BUCKET_NUMBERS, sum(parameter.numel() for parameter in self.parameters))
        numbers += numbers % 2  # an odd number is refused
        self.inner, *_ = deepspeed.initialize(
            model=scorer,
            optimizer=self.adamw,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "managed_gradient_accumulation": False,
                "gradient_allreduce_op": "sum",
                "gradient_clipping": settings.clip if self.stage else 0.0,
                "zero_optimization": {
                    "stage": self.stage,
                    "reduce_bucket_size": numbers,
                    "allgather_bucket_size": numbers,
                },
                "zero_allow_untested_optimizer": True,
                "steps_per_print": None,
            },
        )
        self.functions = deepspeed.utils
        self.zero = self.inner.optimizer
        if self.stage:
            self._link_moments(steps=0)
        if self.stage == 2:
            # It would exchange gradients within a backward pass, which a rank that runs out of
            # memory there could not complete: `end_pass` does so after it.
            self.zero._coalesce_grad_reduction = True
        if self.stage == 2 or (self.stage == 0 and self.ranks == 1):
            # On one rank it would flatten, exchange and copy back: 5 times AdamW's own time.
            self.inner.enable_backward_allreduce = False

    def _clip(self, *_: object) -> None:
        self.norm = clip(self.parameters, self.max_norm)

    def __call__(self, forwards: Sequence[Inputs], seeds: Sequence[int] = ()) -> Tensor:
        return self.inner(forwards, seeds)

    def backward(self, loss: Tensor, *, last: bool = False) -> None:
        self.inner.backward(loss)

    def end_pass(self) -> None:
        if self.stage == 2:
            for parameter in self.parameters:  # the same on all ranks, or they would wait for ever
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self.inner._flush_coalesced_reduction_zero12(self.zero)

    def discard(self) -> None:
        if self.stage == 0:
            super().discard()
            return
        self.zero.zero_grad()
        self.zero.all_grad_tensors.clear()  # the sums over earlier passes of the step

    def step(self, lr: float) -> float:
        set_lr(self.adamw, lr)
        self.inner.step()
        return float(self.inner.get_global_grad_norm()) if self.stage else self.norm

    def moments(self) -> dict[str, Tensor]:
        if self.stage == 0:
            return super().moments()
        whole = self.functions.safe_get_full_optimizer_state
        return {
            f"{moment}.{name}": whole(parameter, moment)
            for name, parameter in trained_parameters(self.model).items()
            for moment in MOMENTS
        }

    def restore(self, weights: dict[str, Tensor], moments: dict[str, Tensor], steps: int) -> None:
        if self.stage == 0:
            super().restore(weights, moments, steps)
            return
        write_weights(self.model, weights)
        self._link_moments(steps)
        for name, parameter in trained_parameters(self.model).items():
            self.functions.safe_set_full_fp32_param(parameter, weights[name])
            for moment in MOMENTS:
                whole = moments.get(f"{moment}.{name}", torch.zeros_like(parameter))
                self.functions.safe_set_full_optimizer_state(parameter, whole, moment)

    def _link_moments(self, steps: int) -> None:
        """Creates AdamW's state and links each parameter to its part of it.

        DeepSpeed itself links them in the first step, after the first parameter group's update,
        and misses the other groups (0.19.8).
        """
        for partition in self.zero.single_partition_of_fp32_groups:
            self.adamw.state[partition] = {
                "step": torch.tensor(float(steps), device=partition.device),
                **{moment: torch.zeros_like(partition) for moment in MOMENTS},
            }
        self.zero._hp_optimizer_states_linked = False
        self.zero._lazy_init_hp_params_optimizer_state()
