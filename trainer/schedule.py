"""The learning rate of every step."""

import math

from trainer.specs import OptimisationSpec


def learning_rate(settings: OptimisationSpec, step: int) -> float:
    """The rate of step 0 .. steps - 1: linear warm-up to `lr`, then the schedule down to 0.

    The warm-up reaches `lr` at step `warmup_steps`; the decay would reach 0 at step `steps`, so
    that every step moves the weights except step 0 of a warm-up. Worked: lr 1, 2 warm-up steps
    of 6 and linear decay give 0, 0.5, 1, 0.75, 0.5, 0.25.
    """
    if step < settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    progress = (step - settings.warmup_steps) / (settings.steps - settings.warmup_steps)
    if settings.schedule == "cosine":
        return settings.lr * (1 + math.cos(math.pi * progress)) / 2
    return settings.lr * (1 - progress)
