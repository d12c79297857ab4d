"""Kernels for training on packed passes, with gradients and dropout, and glibc's memory setting.

On a CPU they avoid most of the time that autograd and autocast spend around the matrix products.
Weights are laid out (and cast to bf16) once for all passes of a micro-batch; query, key and value
are one product. Attention runs sequence by sequence: the scores fit the cache and nothing is
padded. Dropout takes 16 random bits for each number: 1.8 ms for the attention weights of 2,048
tokens of MiniLM-L6, where PyTorch's Bernoulli draws take 17 ms, more than the rest of attention.
Every pair draws its own, so that they do not depend on the other pairs of its pass.

On a GPU attention is that of `varlen.attention`, and dropout PyTorch's.

Shapes: T tokens, S sequences, Q queries (T of them, or S first tokens), K sides, N heads, D width
of a head.
"""

import ctypes
import resource
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import dropout, gelu
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from xsweep.evaluator.varlen.attention import Packing, attend
from xsweep.evaluator.varlen.layers import (
    Kernels,
    Layer,
    Projection,
    Weights,
    computed_in,
    outer_product,
    prepare,
    rotated,
    side_by_side,
)


class TrainingKernels(Kernels):
    """Kernels for one micro-batch, with gradients and dropout; weights must not change meanwhile.

    With `recompute`, `run` keeps no activations and computes them again for the gradient.
    """

    def __init__(self, dtype: torch.dtype, *, dropout: bool, recompute: bool = False) -> None:
        super().__init__(dtype)
        self.dropout, self.recompute = dropout, recompute
        self.packing: Packing | None = None
        """The pass under way, whose pairs dropout needs to know."""

    def linear(self, *parts: Weights, with_gelu: bool = False) -> Projection:
        layer = _PreparedLinear(parts, self.dtype)
        return (lambda states: gelu(layer(states))) if with_gelu else layer

    def gated(self, layer: Weights, activation: torch.nn.Module | None) -> Projection:
        both = _PreparedLinear((layer,), self.dtype)
        act = activation or gelu

        def project(states: Tensor) -> Tensor:
            inner_TI, gate_TI = both(states).chunk(2, -1)
            return act(inner_TI) * gate_TI

        return project

    def attend(
        self,
        query_SND: Tensor | None,
        sides_TKND: Tensor,
        packing: Packing,
        window_tokens: int | None,
        rate: float,
    ) -> Tensor:
        rate = self._rate(rate)
        if not sides_TKND.is_cpu:
            return attend(query_SND, sides_TKND, packing, window_tokens, rate)
        return Attention.apply(query_SND, sides_TKND, packing, window_tokens, rate)

    def rotate(self, sides_TKND: Tensor, rotation: tuple[Tensor, Tensor], count: int) -> Tensor:
        return _Rotate.apply(sides_TKND, *rotation, count)

    def drop(self, states: Tensor, rate: float) -> Tensor:
        rate = self._rate(rate)
        if not rate:
            return states
        return (
            DropAndAdd.apply(None, states, rate, self.packing)
            if states.is_cpu
            else dropout(states, rate)
        )

    def add(self, residual: Tensor, states: Tensor, rate: float) -> Tensor:
        rate = self._rate(rate)
        if rate and states.is_cpu:
            return DropAndAdd.apply(residual, states, rate, self.packing)
        return residual + self.drop(states, rate)

    def run(self, layer: Layer, *arguments: object) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._layer_of, self.packing, layer, *arguments, use_reentrant=False)
        return layer(*arguments)

    def head(self, head: Layer, *arguments: object) -> Tensor:
        with _HeadDropout(self):
            return head(*arguments)

    def _layer_of(self, packing: Packing | None, layer: Layer, *arguments: object) -> Tensor:
        self.packing = packing  # by the time of the gradient, another pass is under way
        return layer(*arguments)

    def _rate(self, rate: float) -> float:
        return rate if self.dropout else 0.0


class _HeadDropout(TorchFunctionMode):
    """Lets the kernels do the dropout of a classification head, which is the model's own module."""

    def __init__(self, kernels: TrainingKernels) -> None:
        super().__init__()
        self.kernels = kernels

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is dropout:
            return self.kernels.drop(args[0], (kwargs or {})["p"])
        return func(*args, **(kwargs or {}))


class _PreparedLinear:
    """Linear layers side by side; each direction is laid out when it is first needed."""

    def __init__(self, parts: tuple[Weights, ...], dtype: torch.dtype) -> None:
        self.parts, self.dtype = parts, dtype
        self.joined: Weights | None = None
        self.forward_product: Projection | None = None
        self.backward_product: Projection | None = None

    def __call__(self, states: Tensor) -> Tensor:
        weights, biases = zip(*self.parts, strict=True)
        return _Linear.apply(states, self, *weights, *(b for b in biases if b is not None))

    def forward(self, states: Tensor) -> Tensor:
        if self.forward_product is None:
            weight, bias = side_by_side(self.parts)
            self.joined = weight.detach().to(self.dtype), bias
            self.forward_product = prepare(*self.joined, self.dtype)
        return self.forward_product(states)

    def backward(self, slopes: Tensor) -> Tensor:
        if self.backward_product is None:
            assert self.joined
            self.backward_product = prepare(self.joined[0].t().contiguous(), None, self.dtype)
            self.joined = None
        return self.backward_product(slopes)


class _Linear(torch.autograd.Function):
    """A product with prepared weights; gradients of the weights are fp32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, layer: _PreparedLinear, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(states)
        ctx.layer = layer
        return layer.forward(states)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        (states,) = ctx.saved_tensors
        slopes = slopes.contiguous()
        states_slopes = ctx.layer.backward(slopes) if ctx.needs_input_grad[0] else None
        parts = ctx.layer.parts
        sizes = [len(weight) for weight, _ in parts]
        inner = computed_in(slopes.dtype, slopes.device)
        weight_slopes = outer_product(slopes.to(inner), states.to(inner)).float().split(sizes)
        bias_slopes: tuple[Tensor, ...] = ()
        if parts[0][1] is not None:
            bias_slopes = slopes.sum(0, dtype=torch.float32).split(sizes)
        return states_slopes, None, *weight_slopes, *bias_slopes


class _Rotate(torch.autograd.Function):
    """A rotation by rotary positions; its gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, sides_TKND: Tensor, cosines: Tensor, sines: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        ctx.count = count
        return _rotate_first(sides_TKND, cosines, sines, count)

    @staticmethod
    def backward(ctx: Any, slopes_TKND: Tensor) -> tuple[Tensor | None, ...]:
        cosines, sines = ctx.saved_tensors
        return _rotate_first(slopes_TKND, cosines, -sines, ctx.count), None, None, None


def _rotate_first(sides_TKND: Tensor, cosines: Tensor, sines: Tensor, count: int) -> Tensor:
    """A copy whose first `count` sides are rotated."""
    turned_TKND = sides_TKND.clone()
    turned_TKND[:, :count] = rotated(sides_TKND[:, :count], cosines, sines)
    return turned_TKND


STEPS = 2**16
"""Dropout rates are multiples of 1/65536 (0.1 becomes 0.100006)."""


class DropAndAdd(torch.autograd.Function):
    """`residual` plus the states after dropout, in fp32; the states alone if it is None.

    Only the random bits are kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor | None, states: Tensor, rate: float, packing: Packing
    ) -> Tensor:
        rows = packing.lengths if len(states) == len(packing.ids_T) else [1] * len(packing.lengths)
        bits = random_bits([count * states.shape[1] for count in rows], packing).view(states.shape)
        ctx.bits, ctx.rate, ctx.dtype = bits, rate, states.dtype
        factors = keep_mask(bits, rate, torch.empty(states.shape))
        if residual is None:
            return states * factors.mul_(scale(rate)).to(states.dtype)
        return torch.addcmul(residual, states.float(), factors, value=scale(rate))

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        factors = keep_mask(ctx.bits, ctx.rate, torch.empty(slopes.shape))
        states_slopes = factors.mul_(slopes).mul_(scale(ctx.rate)).to(ctx.dtype)
        return slopes if ctx.needs_input_grad[0] else None, states_slopes, None, None


def random_bits(counts: Sequence[int], packing: Packing) -> Tensor:
    """Uniform int16 numbers, so many for each sequence, by SFC64, 4 of them at a time.

    The seed is one draw from PyTorch's generator, so `torch.manual_seed` and a sequence's number
    determine its masks. The generator is not built for each sequence but set as NumPy seeds it,
    which drops 12 draws: 3 us instead of 20.
    """
    seed = int(torch.randint(2**63 - 1, (1,)))
    generator = np.random.SFC64(seed)
    state: Any = generator.state
    bits, start = np.empty(sum(counts), dtype=np.int16), 0
    for count, number in zip(counts, packing.numbers or range(len(counts)), strict=True):
        state["state"]["state"] = np.array([seed, number, 0, 1], dtype=np.uint64)
        generator.state = state
        drawn = generator.random_raw(12 - (-count // 4))[12:]
        bits[start : start + count] = drawn.view(np.int16)[:count]
        start += count
    return torch.from_numpy(bits)


def keep_mask(bits: Tensor, rate: float, out: Tensor) -> Tensor:
    """Fills `out` with 1 for numbers that are kept and 0 for those that are dropped."""
    return torch.ge(bits, _dropped_values(rate) - STEPS // 2, out=out)


def scale(rate: float) -> float:
    """The factor of kept numbers that keeps the expectation exact; `scale(0.5)` is 2."""
    return STEPS / (STEPS - _dropped_values(rate))


def _dropped_values(rate: float) -> int:
    """The number of the 65,536 values of the bits that drop a number; at least one keeps it."""
    return min(round(rate * STEPS), STEPS - 1)


class Attention(torch.autograd.Function):
    """Softmax(q kᵀ / √D), dropout, times v, sequence by sequence, all in fp32.

    Products this small gain nothing from bf16: oneDNN prepares a kernel for every new length, and
    weights would be copied between the two.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_SND: Tensor | None,
        sides_TKND: Tensor,
        packing: Packing,
        window_tokens: int | None,
        rate: float,
    ) -> Tensor:
        lengths = packing.lengths
        query_QND, key_TND, value_TND = _sides(query_SND, sides_TKND)
        heads, width = query_QND.shape[1:]
        query_lengths = lengths if query_SND is None else [1] * len(lengths)
        sizes = [heads * q * k for q, k in zip(query_lengths, lengths, strict=True)]
        weights = torch.empty(sum(sizes))
        bits = random_bits(sizes, packing) if rate else None
        mixed_QND = torch.empty(query_QND.shape, dtype=query_QND.dtype)
        scratch = torch.empty(max(sizes))
        for queries, keys, part in _sequences(query_lengths, lengths, sizes):
            shape = heads, queries.stop - queries.start, keys.stop - keys.start
            query, key, value = _by_head(query_QND[queries], key_TND[keys], value_TND[keys])
            scores = scratch[: part.stop - part.start].view(shape)
            _product(query, key.transpose(1, 2), width**-0.5, out=scores)
            if window_tokens is not None and shape[2] > window_tokens + 1:
                places = torch.arange(shape[2])
                is_outside = (places[: shape[1], None] - places).abs() > window_tokens
                scores.masked_fill_(is_outside, -torch.inf)
            alphas = torch.softmax(scores, -1, out=weights[part].view(shape))
            if bits is not None:
                alphas = keep_mask(bits[part].view(shape), rate, scores).mul_(alphas)
            mixed_QND[queries] = _product(alphas, value, scale(rate)).transpose(0, 1)
        ctx.save_for_backward(query_SND, sides_TKND, weights, bits)
        ctx.parts, ctx.rate = (query_lengths, lengths, sizes), rate
        return mixed_QND.flatten(1)

    @staticmethod
    def backward(ctx: Any, slopes_QH: Tensor) -> tuple[Tensor | None, ...]:
        query_SND, sides_TKND, weights, bits = ctx.saved_tensors
        query_QND, key_TND, value_TND = _sides(query_SND, sides_TKND)
        heads, width = query_QND.shape[1:]
        slopes_QND = slopes_QH.unflatten(1, (heads, width))
        sides_slopes_TKND = torch.empty_like(sides_TKND)
        query_slopes_SND = None if query_SND is None else torch.empty_like(query_SND)
        query_slopes_QND = _sides(query_slopes_SND, sides_slopes_TKND)[0]
        scratch, kept = torch.empty(2, max(ctx.parts[2])).unbind()
        for queries, keys, part in _sequences(*ctx.parts):
            shape = heads, queries.stop - queries.start, keys.stop - keys.start
            size = part.stop - part.start
            query, key, value = _by_head(query_QND[queries], key_TND[keys], value_TND[keys])
            (mixed_slopes,) = _by_head(slopes_QND[queries])
            alphas = weights[part].view(shape)
            alphas_slopes = scratch[:size].view(shape)
            _product(mixed_slopes, value.transpose(1, 2), scale(ctx.rate), out=alphas_slopes)
            used = alphas
            if bits is not None:
                factors = keep_mask(bits[part].view(shape), ctx.rate, kept[:size].view(shape))
                alphas_slopes *= factors
                used = factors.mul_(alphas)
            scores_slopes = torch._softmax_backward_data(alphas_slopes, alphas, -1, torch.float32)
            value_slopes = _product(used.transpose(1, 2), mixed_slopes, scale(ctx.rate))
            query_slopes = _product(scores_slopes, key, width**-0.5)
            key_slopes = _product(scores_slopes.transpose(1, 2), query, width**-0.5)
            query_slopes_QND[queries] = query_slopes.transpose(0, 1)
            sides_slopes_TKND[keys, -2] = key_slopes.transpose(0, 1)
            sides_slopes_TKND[keys, -1] = value_slopes.transpose(0, 1)
        return query_slopes_SND, sides_slopes_TKND, None, None, None


def _sides(query_SND: Tensor | None, sides_TKND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value; the queries are the first side where none are given."""
    query_QND = sides_TKND[:, 0] if query_SND is None else query_SND
    return query_QND, sides_TKND[:, -2], sides_TKND[:, -1]


def _sequences(
    query_lengths: Sequence[int], lengths: Sequence[int], sizes: Sequence[int]
) -> Iterator[tuple[slice, slice, slice]]:
    """Each sequence's rows among queries and keys, and its part of all attention weights."""
    query = key = weight = 0
    for queries, keys, size in zip(query_lengths, lengths, sizes, strict=True):
        yield slice(query, query + queries), slice(key, key + keys), slice(weight, weight + size)
        query, key, weight = query + queries, key + keys, weight + size


def _by_head(*sides: Tensor) -> tuple[Tensor, ...]:
    """fp32[N, tokens, D] from each [tokens, N, D]."""
    return tuple(side.transpose(0, 1).float() for side in sides)


def _product(left: Tensor, right: Tensor, factor: float, *, out: Tensor | None = None) -> Tensor:
    """The batched product times a factor."""
    if out is None:
        out = left.new_empty(len(left), left.shape[1], right.shape[2])
    return torch.baddbmm(out, left, right, beta=0, alpha=factor, out=out)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt`, https://man7.org/linux/man-pages/man3/mallopt.3.html."""


def keep_freed_memory() -> bool:
    """Makes glibc's allocator keep large blocks for the next step; False if it does not.

    Otherwise every activation above 32 MB is mapped again in each step, and the kernel clears its
    pages first. Both settings belong together: a trim threshold alone makes every block above
    128 KB a mapping of its own, and a step of MiniLM-L6 takes 1.7 times as long. Does nothing
    without glibc, or if the address space is limited: memory kept for one size is lost to others.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
