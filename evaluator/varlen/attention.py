"""Sequences packed end to end without padding, and attention within each of them.

Shapes: T tokens of all sequences, S sequences, Q queries (T of them, or S first tokens), K sides,
N heads, D width of a head.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from xsweep.evaluator.pairs import PairIds


class Packing(NamedTuple):
    """Sequences packed end to end."""

    ids_T: torch.Tensor
    """int64 token ids"""
    segments_T: torch.Tensor | None
    """int64 segment ids, if the model takes them"""
    positions_T: torch.Tensor
    """int64, from 0 in every sequence"""
    starts_S: torch.Tensor
    """int64 index of each sequence's first token"""
    lengths: list[int]
    """Tokens of each sequence"""
    words_TE: torch.Tensor | None = None
    """The tokens' embeddings, if many packings looked them up together"""

    def words(self, table: torch.nn.Module) -> torch.Tensor:
        """The tokens' embeddings, [T, E]."""
        return table(self.ids_T) if self.words_TE is None else self.words_TE

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Packing":
        """The same sequences with every tensor changed, for example moved to a device."""
        return self._replace(
            ids_T=change(self.ids_T),
            segments_T=None if self.segments_T is None else change(self.segments_T),
            positions_T=change(self.positions_T),
            starts_S=change(self.starts_S),
        )


def pack(sequences: Sequence[PairIds]) -> Packing:
    """Puts sequences end to end, in their order, on the host."""
    lengths = [len(each.input_ids) for each in sequences]
    ends = np.cumsum(lengths)
    starts = ends - lengths
    segments = [each.token_type_ids for each in sequences if each.token_type_ids is not None]
    return Packing(
        ids_T=torch.from_numpy(np.concatenate([each.input_ids for each in sequences])),
        segments_T=torch.from_numpy(np.concatenate(segments)) if segments else None,
        positions_T=torch.from_numpy(np.arange(ends[-1]) - np.repeat(starts, lengths)),
        starts_S=torch.from_numpy(starts),
        lengths=lengths,
    )


def attend(
    query_SND: torch.Tensor | None,
    sides_TKND: torch.Tensor,
    packing: Packing,
    window_tokens: int | None = None,
) -> torch.Tensor:
    """Attention of every token, or with `query_SND` of each sequence's first one, [Q, N * D].

    The sides are query, key and value, or the last two. With a window a token attends to those at
    most `window_tokens` away. A GPU in half precision runs PyTorch's varlen kernel; elsewhere
    neighbours of equal length share a call, so sort sequences by length.
    """
    query_QND = sides_TKND[:, 0] if query_SND is None else query_SND
    key_TND, value_TND = sides_TKND[:, -2], sides_TKND[:, -1]
    if query_SND is None and query_QND.is_cuda and query_QND.dtype != torch.float32:
        return _attend_varlen(query_QND, key_TND, value_TND, packing, window_tokens)
    mixed_QND = torch.empty_like(query_QND, memory_format=torch.contiguous_format)
    start = start_query = 0
    for length, same in groupby(packing.lengths):
        count, queries = len(list(same)), length if query_SND is None else 1
        rows = slice(start_query, start_query + count * queries)
        query = query_QND[rows].unflatten(0, (count, queries)).transpose(1, 2)
        key, value = (
            side[start : start + count * length].unflatten(0, (count, length)).transpose(1, 2)
            for side in (key_TND, value_TND)
        )
        mask = None
        if window_tokens is not None and length > window_tokens + 1:
            places = torch.arange(length, device=query.device)
            mask = (places[:queries, None] - places).abs() <= window_tokens
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed_QND[rows] = mixed.transpose(1, 2).flatten(0, 1)
        start, start_query = start + count * length, rows.stop
    return mixed_QND.flatten(1)


def _attend_varlen(
    query_TND: torch.Tensor,
    key_TND: torch.Tensor,
    value_TND: torch.Tensor,
    packing: Packing,
    window_tokens: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.cumsum(torch.tensor([0, *packing.lengths]), 0).int().to(query_TND.device)
    longest = max(packing.lengths)
    window = (-1, -1) if window_tokens is None else (window_tokens, window_tokens)
    mixed_TND = varlen_attn(
        query_TND, key_TND, value_TND, ends, ends, longest, longest, window_size=window
    )
    assert isinstance(mixed_TND, torch.Tensor)
    return mixed_TND.flatten(1)
