"""Attention of packed sequences with gradients and dropout.

On a CPU each sequence is computed on its own: its scores fit the cache, nothing is padded, and
dropout costs little (`trainer.dropout`). On a GPU PyTorch's varlen kernel runs where it can (half
precision, no dropout), else scaled-dot-product attention over padded sequences.

Shapes: T tokens, S sequences, Q queries (T of them, or S first tokens), K sides, N heads, D width
of a head.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from evaluator.packing import Packing, attend
from trainer.dropout import keep, random_bits, scale


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
