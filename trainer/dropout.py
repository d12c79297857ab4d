"""Dropout on a CPU: 16 random bits a number, drawn 4 numbers at a time.

PyTorch draws one Bernoulli number after the other: 17 ms for the attention weights of 2,048 tokens
of MiniLM-L6, more than all other work of its attention. These take 1.8 ms. Rates are multiples of
1/65536 (0.1 becomes 0.100006) and what is kept is scaled accordingly, so expectations are exact.
The generator (SFC64) is seeded from PyTorch's, so that `torch.manual_seed` decides every mask.
"""

import numpy as np
import torch
from torch import Tensor

STEPS = 2**16


def random_bits(count: int) -> Tensor:
    """int16[count], uniform; a function of PyTorch's random state, which moves on by one draw."""
    seed = int(torch.randint(2**63 - 1, (1,)))
    numbers = np.random.SFC64(seed).random_raw(-(-count // 4))
    return torch.from_numpy(numbers.view(np.int16))[:count]


def keep(bits: Tensor, rate: float, out: Tensor) -> Tensor:
    """Fills `out` with 1 where the bits say that a number stays and with 0 elsewhere."""
    return torch.ge(bits, dropped_of(rate) - STEPS // 2, out=out)


def dropped_of(rate: float) -> int:
    """How many of 65,536 values of the bits drop a number; at least one keeps it."""
    return min(round(rate * STEPS), STEPS - 1)


def scale(rate: float) -> float:
    """What is kept is multiplied by this; `scale(0.5)` is 2."""
    return STEPS / (STEPS - dropped_of(rate))


def dropped(residual: Tensor | None, states: Tensor, rate: float) -> Tensor:
    """`residual` plus the states after dropout, in fp32; the states alone where it is None."""
    return Dropped.apply(residual, states, rate)


class Dropped(torch.autograd.Function):
    """See `dropped`; only the bits are kept for the backward pass."""

    @staticmethod
    def forward(ctx, residual: Tensor | None, states: Tensor, rate: float) -> Tensor:  # type: ignore[no-untyped-def]
        bits = random_bits(states.numel()).view(states.shape)
        ctx.bits, ctx.rate, ctx.dtype = bits, rate, states.dtype
        factors = keep(bits, rate, torch.empty(states.shape))
        if residual is None:
            return states * factors.mul_(scale(rate)).to(states.dtype)
        return torch.addcmul(residual, states.float(), factors, value=scale(rate))

    @staticmethod
    def backward(ctx, slopes: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        factors = keep(ctx.bits, ctx.rate, torch.empty(slopes.shape))
        before = factors.mul_(slopes).mul_(scale(ctx.rate)).to(ctx.dtype)
        return slopes if ctx.needs_input_grad[0] else None, before, None
