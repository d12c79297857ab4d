"""The kernels of `xsweep.evaluator.varlen.layers` for training: with gradients and dropout.

On a CPU they save what autograd and autocast spend around the matrix products: weights are laid
out (and cast to bf16) once for all passes of a micro-batch, query, key and value are one product,
and dropout is drawn as 16 random bits a number by a fast generator (see `cpu_kernels`).

Attention of packed sequences with gradients and dropout.

On a CPU each sequence is computed on its own: its scores fit the cache, nothing is padded, and
dropout costs little (`cpu_kernels`). On a GPU PyTorch's varlen kernel runs where it can (half
precision, no dropout), else scaled-dot-product attention over padded sequences.

Shapes: T tokens, S sequences, Q queries (T of them, or S first tokens), K sides, N heads, D width
of a head.

Dropout on a CPU: 16 random bits a number, drawn 4 numbers at a time.

PyTorch draws one Bernoulli number after the other: 17 ms for the attention weights of 2,048 tokens
of MiniLM-L6, more than all other work of its attention. These take 1.8 ms. Rates are multiples of
1/65536 (0.1 becomes 0.100006) and what is kept is scaled accordingly, so expectations are exact.
The generator (SFC64) is seeded from PyTorch's, so that `torch.manual_seed` decides every mask.

Memory on a CPU: what a step frees is kept for the next one.
"""

import ctypes
import resource
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import dropout, gelu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from xsweep.evaluator.varlen.attention import Packing, attend
from xsweep.evaluator.varlen.layers import (
    Kernels,
    Layer,
    Projection,
    Weights,
    computed_in,
    prepare,
    rotated,
    side_by_side,
)

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


def attend_with_gradients(
    query_SND: Tensor | None,
    sides_TKND: Tensor,
    packing: Packing,
    window_tokens: int | None,
    rate: float,
) -> Tensor:
    """Attention of every token, or with `query_SND` of each sequence's first one, [Q, N * D].

    The sides are query, key and value, or the last two. With a window a token sees those at most
    `window_tokens` away.
    """
    if not sides_TKND.is_cuda:
        return _Attention.apply(query_SND, sides_TKND, packing.lengths, window_tokens, rate)
    if query_SND is None and not rate and sides_TKND.dtype != torch.float32:
        query_TND, key_TND, value_TND = sides_TKND.unbind(1)
        return attend(query_TND, key_TND, value_TND, packing, window_tokens)
    return attend_padded(query_SND, sides_TKND, packing, window_tokens, rate)


def attend_padded(
    query_SND: Tensor | None,
    sides_TKND: Tensor,
    packing: Packing,
    window_tokens: int | None,
    rate: float,
) -> Tensor:
    """The same by one call over sequences padded to the longest: attention alone is padded."""
    device = sides_TKND.device
    lengths_S = torch.tensor(packing.lengths, device=device)
    places_L = torch.arange(max(packing.lengths), device=device)
    is_token_SL = places_L < lengths_S[:, None]
    rows_SL = torch.where(is_token_SL, packing.starts_S[:, None] + places_L, 0)
    sides_KSNLD = sides_TKND[rows_SL].permute(2, 0, 3, 1, 4)
    key_SNLD, value_SNLD = sides_KSNLD[-2], sides_KSNLD[-1]
    allowed = is_token_SL[:, None, None]
    asked_L = places_L if query_SND is None else places_L[:1]
    if window_tokens is not None:
        allowed = allowed & ((asked_L[:, None] - places_L).abs() <= window_tokens)
    query = sides_KSNLD[0] if query_SND is None else query_SND[:, :, None]
    # Padded queries must see something: a softmax over nothing is not a number.
    allowed = allowed | ~is_token_SL[:, None, : len(asked_L), None]
    mixed = scaled_dot_product_attention(
        query, key_SNLD, value_SNLD, attn_mask=allowed, dropout_p=rate
    ).transpose(1, 2)
    return (mixed[is_token_SL] if query_SND is None else mixed[:, 0]).flatten(1)


class _Attention(torch.autograd.Function):
    """Softmax(q kᵀ / √D), dropout, times v, sequence by sequence, all in fp32.

    Products this small gain nothing from bf16: oneDNN prepares a kernel for every new length, and
    weights would be copied between the two.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_SND: Tensor | None,
        sides_TKND: Tensor,
        lengths: Sequence[int],
        window_tokens: int | None,
        rate: float,
    ) -> Tensor:
        query_QND = sides_TKND[:, 0] if query_SND is None else query_SND
        key_TND, value_TND = sides_TKND[:, -2], sides_TKND[:, -1]
        heads, width = query_QND.shape[1:]
        asked = lengths if query_SND is None else [1] * len(lengths)
        sizes = [heads * q * k for q, k in zip(asked, lengths, strict=True)]
        weights = torch.empty(sum(sizes))
        bits = random_bits(len(weights)) if rate else None
        mixed_QND = torch.empty(query_QND.shape, dtype=query_QND.dtype)
        scratch = torch.empty(max(sizes))
        for queries, keys, part in _sequences(asked, lengths, sizes):
            shape = heads, queries.stop - queries.start, keys.stop - keys.start
            query, key, value = _by_head(query_QND[queries], key_TND[keys], value_TND[keys])
            scores = scratch[: part.stop - part.start].view(shape)
            _product(query, key.transpose(1, 2), width**-0.5, out=scores)
            if window_tokens is not None and shape[2] > window_tokens + 1:
                scores.masked_fill_(_outside(*shape[1:], window_tokens), -torch.inf)
            alphas = torch.softmax(scores, -1, out=weights[part].view(shape))
            if bits is not None:
                alphas = keep(bits[part].view(shape), rate, scores).mul_(alphas)
            mixed_QND[queries] = _product(alphas, value, scale(rate)).transpose(0, 1)
        ctx.save_for_backward(query_SND, sides_TKND, weights, bits)
        ctx.parts, ctx.rate = (asked, lengths, sizes), rate
        return mixed_QND.flatten(1)

    @staticmethod
    def backward(ctx: Any, slopes_QH: Tensor) -> tuple[Tensor | None, ...]:
        query_SND, sides_TKND, weights, bits = ctx.saved_tensors
        query_QND = sides_TKND[:, 0] if query_SND is None else query_SND
        key_TND, value_TND = sides_TKND[:, -2], sides_TKND[:, -1]
        heads, width = query_QND.shape[1:]
        slopes_QND = slopes_QH.unflatten(1, (heads, width))
        of_sides_TKND = torch.empty_like(sides_TKND)
        of_query_QND = of_sides_TKND[:, 0] if query_SND is None else torch.empty_like(query_SND)
        scratch, kept = torch.empty(2, max(ctx.parts[2])).unbind()
        for queries, keys, part in _sequences(*ctx.parts):
            shape = heads, queries.stop - queries.start, keys.stop - keys.start
            size = part.stop - part.start
            query, key, value = _by_head(query_QND[queries], key_TND[keys], value_TND[keys])
            (of_mixed,) = _by_head(slopes_QND[queries])
            alphas = weights[part].view(shape)
            of_alphas = scratch[:size].view(shape)
            _product(of_mixed, value.transpose(1, 2), scale(ctx.rate), out=of_alphas)
            used = alphas
            if bits is not None:
                factors = keep(bits[part].view(shape), ctx.rate, kept[:size].view(shape))
                of_alphas *= factors
                used = factors.mul_(alphas)
            of_scores = torch._softmax_backward_data(of_alphas, alphas, -1, torch.float32)
            of_value = _product(used.transpose(1, 2), of_mixed, scale(ctx.rate))
            of_query = _product(of_scores, key, width**-0.5)
            of_key = _product(of_scores.transpose(1, 2), query, width**-0.5)
            of_query_QND[queries] = of_query.transpose(0, 1)
            of_sides_TKND[keys, -2] = of_key.transpose(0, 1)
            of_sides_TKND[keys, -1] = of_value.transpose(0, 1)
        return None if query_SND is None else of_query_QND, of_sides_TKND, None, None, None


def _sequences(
    asked: Sequence[int], lengths: Sequence[int], sizes: Sequence[int]
) -> Iterator[tuple[slice, slice, slice]]:
    """Each sequence's rows among queries and keys, and its part of all attention weights."""
    query = key = weight = 0
    for queries, keys, size in zip(asked, lengths, sizes, strict=True):
        yield slice(query, query + queries), slice(key, key + keys), slice(weight, weight + size)
        query, key, weight = query + queries, key + keys, weight + size


def _by_head(*sides: Tensor) -> tuple[Tensor, ...]:
    """fp32[N, tokens, D] of each [tokens, N, D]."""
    return tuple(side.transpose(0, 1).float() for side in sides)


def _product(left: Tensor, right: Tensor, factor: float, *, out: Tensor | None = None) -> Tensor:
    """Batched product times a factor."""
    if out is None:
        out = left.new_empty(len(left), left.shape[1], right.shape[2])
    return torch.baddbmm(out, left, right, beta=0, alpha=factor, out=out)


def _outside(queries: int, keys: int, window_tokens: int) -> Tensor:
    places = torch.arange(keys)
    return (places[:queries, None] - places).abs() > window_tokens


class TrainingKernels(Kernels):
    """Kernels for one micro-batch, with gradients and dropout; weights must not change meanwhile.

    With `recompute`, `run` keeps no activations and computes them again for the gradient.
    """

    def __init__(self, dtype: torch.dtype, *, dropout: bool, recompute: bool = False) -> None:
        super().__init__(dtype)
        self.dropout, self.recompute = dropout, recompute

    def linear(self, *parts: Weights, with_gelu: bool = False) -> Projection:
        prepared = _Prepared(parts, self.dtype)
        return (lambda states: gelu(prepared(states))) if with_gelu else prepared

    def gated(self, layer: Weights, activation: torch.nn.Module | None) -> Projection:
        both = _Prepared((layer,), self.dtype)
        act = activation or gelu

        def project(states: Tensor) -> Tensor:
            inner_TI, gate_TI = both(states).chunk(2, -1)
            return act(inner_TI) * gate_TI

        return project

    def attend(
        self, sides_T3ND: Tensor, packing: Packing, window_tokens: int | None, rate: float
    ) -> Tensor:
        return attend_with_gradients(None, sides_T3ND, packing, window_tokens, self._rate(rate))

    def attend_from_first(
        self,
        query_SND: Tensor,
        sides_T2ND: Tensor,
        packing: Packing,
        window_tokens: int | None,
        rate: float,
    ) -> Tensor:
        return attend_with_gradients(
            query_SND, sides_T2ND, packing, window_tokens, self._rate(rate)
        )

    def rotate(self, sides_TKND: Tensor, rotation: tuple[Tensor, Tensor], count: int) -> Tensor:
        return _Rotate.apply(sides_TKND, *rotation, count)

    def drop(self, states: Tensor, rate: float) -> Tensor:
        rate = self._rate(rate)
        if not rate or states.device.type != "cpu":
            return dropout(states, rate) if rate else states
        return dropped(None, states, rate)

    def add(self, residual: Tensor, states: Tensor, rate: float) -> Tensor:
        rate = self._rate(rate)
        if not rate:
            return residual + states
        if states.device.type != "cpu":
            return residual + dropout(states, rate)
        return dropped(residual, states, rate)

    def run(self, layer: Layer, *arguments: object) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *arguments, use_reentrant=False)
        return layer(*arguments)

    def _rate(self, rate: float) -> float:
        return rate if self.dropout else 0.0


class _Prepared:
    """Linear layers side by side, laid out for both directions when they are first needed."""

    def __init__(self, parts: tuple[Weights, ...], dtype: torch.dtype) -> None:
        self.parts, self.dtype = parts, dtype
        self.whole: Weights | None = None
        self.ahead: Projection | None = None
        self.back: Projection | None = None

    def __call__(self, states: Tensor) -> Tensor:
        weights, biases = zip(*self.parts, strict=True)
        return _Linear.apply(states, self, *weights, *(b for b in biases if b is not None))

    def forward(self, states: Tensor) -> Tensor:
        if self.ahead is None:
            weight, bias = side_by_side(self.parts)
            self.whole = weight.detach().to(self.dtype), bias
            self.ahead = prepare(*self.whole, self.dtype)
        return self.ahead(states)

    def backward(self, slopes: Tensor) -> Tensor:
        if self.back is None:
            assert self.whole
            self.back = prepare(self.whole[0].t().contiguous(), None, self.dtype)
            self.whole = None
        return self.back(slopes)


class _Linear(torch.autograd.Function):
    """A product with prepared weights; gradients of the weights are fp32."""

    @staticmethod
    def forward(ctx, states: Tensor, prepared: _Prepared, *parameters: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(states)
        ctx.prepared = prepared
        return prepared.forward(states)

    @staticmethod
    def backward(ctx, slopes: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        (states,) = ctx.saved_tensors
        slopes = slopes.contiguous()
        before = ctx.prepared.backward(slopes) if ctx.needs_input_grad[0] else None
        parts = ctx.prepared.parts
        sizes = [len(weight) for weight, _ in parts]
        inner = computed_in(slopes.dtype, slopes.device)
        of_weights = (slopes.to(inner).t() @ states.to(inner)).float().split(sizes)
        of_biases: tuple[Tensor, ...] = ()
        if parts[0][1] is not None:
            of_biases = slopes.sum(0, dtype=torch.float32).split(sizes)
        return before, None, *of_weights, *of_biases


class _Rotate(torch.autograd.Function):
    """A rotation, whose gradient is turned back by the same angles."""

    @staticmethod
    def forward(ctx, sides_TKND: Tensor, cosines: Tensor, sines: Tensor, count: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(cosines, sines)
        ctx.count = count
        turned = sides_TKND.clone()
        turned[:, :count] = rotated(sides_TKND[:, :count], cosines, sines)
        return turned

    @staticmethod
    def backward(ctx, slopes_TKND: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        cosines, sines = ctx.saved_tensors
        turned = slopes_TKND.clone()
        turned[:, : ctx.count] = rotated(slopes_TKND[:, : ctx.count], cosines, -sines)
        return turned, None, None, None


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's `mallopt`, https://man7.org/linux/man-pages/man3/mallopt.3.html."""


def keep_freed_memory() -> bool:
    """Tells glibc's allocator not to give large blocks back; False where it was not told.

    Otherwise every activation above 32 MB is mapped afresh in each step, and the kernel clears its
    pages first. Both settings belong together: a trim threshold alone makes every block above
    128 KB a mapping of its own, and a step of MiniLM-L6 takes 1.7 times as long. There may be no
    glibc; and where the address space is limited what is kept for one size is lost to others.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
