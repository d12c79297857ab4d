"""AdamW and its learning rate, as every engine uses them; state is saved by parameter name."""

import math

import torch
from torch import Tensor, nn

from xsweep.trainer.specs import OptimisationSpec

MOMENTS = ("exp_avg", "exp_avg_sq")


def build_adamw(model: nn.Module, settings: OptimisationSpec) -> torch.optim.AdamW:
    """AdamW over a model's parameters; weight decay applies to matrices, not to biases and norms.

    Loshchilov & Hutter 2019 (https://arxiv.org/abs/1711.05101). The fused form reads weights,
    gradients and moments once instead of a dozen times.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
    )


def learning_rate(settings: OptimisationSpec, step: int) -> float:
    """The rate of step 0 .. steps - 1: linear warm-up to `lr`, then the schedule down to 0.

    The warm-up reaches `lr` at step `warmup_steps`; the decay would reach 0 at step `steps`, so
    every step moves the weights except step 0 of a warm-up. Worked: lr 1, 2 warm-up steps of 6
    and linear decay give 0, 0.5, 1, 0.75, 0.5, 0.25.
    """
    if step < settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    progress = (step - settings.warmup_steps) / (settings.steps - settings.warmup_steps)
    if settings.schedule == "cosine":
        return settings.lr * (1 + math.cos(math.pi * progress)) / 2
    return settings.lr * (1 - progress)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip(parameters: list[nn.Parameter], max_norm: float) -> float:
    """Clips gradients to a norm (0 does not clip) and returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    before = norm.item()
    if 0 < max_norm < before:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return before


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def write_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copies weights into the trained parameters of a model, by name."""
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            parameter.copy_(weights[name])
