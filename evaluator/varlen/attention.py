"""Sequences packed end to end without padding, and attention within each of them.

Shapes: T tokens of all sequences, S sequences, N heads, D width of a head.
"""

from collections.abc import Callable, Iterator, Sequence
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
    query_TND: torch.Tensor,
    key_TND: torch.Tensor,
    value_TND: torch.Tensor,
    packing: Packing,
    window_tokens: int | None = None,
) -> torch.Tensor:
    """Every token's attention to the tokens of its own sequence, [T, N * D].

    With a window, to those at most `window_tokens` away. A GPU in half precision runs PyTorch's
    varlen kernel; elsewhere neighbours of equal length share a call, so sort sequences by length.
    """
    if query_TND.is_cuda and query_TND.dtype != torch.float32:
        return _attend_varlen(query_TND, key_TND, value_TND, packing, window_tokens)
    mixed_TND = torch.empty_like(query_TND, memory_format=torch.contiguous_format)
    for rows, shape in _groups(packing.lengths):
        length = shape[1]
        sides = (side[rows].unflatten(0, shape) for side in (query_TND, key_TND, value_TND))
        mask = None
        if window_tokens is not None and length > window_tokens + 1:
            places = torch.arange(length, device=query_TND.device)
            mask = (places[:, None] - places).abs() <= window_tokens
        query, key, value = (side.transpose(1, 2) for side in sides)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed_TND[rows] = mixed.transpose(1, 2).flatten(0, 1)
    return mixed_TND.flatten(1)


def attend_from_first(
    query_SND: torch.Tensor,
    key_TND: torch.Tensor,
    value_TND: torch.Tensor,
    packing: Packing,
    window_tokens: int | None = None,
) -> torch.Tensor:
    """The attention of each sequence's first token alone, [S, N * D].

    A last layer needs no more for a head that reads the first token.
    """
    mixed_SND = torch.empty_like(query_SND, memory_format=torch.contiguous_format)
    sequence = 0
    for rows, (count, length) in _groups(packing.lengths):
        seen = length if window_tokens is None else min(length, window_tokens + 1)
        key, value = (
            side[rows].unflatten(0, (count, length))[:, :seen].transpose(1, 2)
            for side in (key_TND, value_TND)
        )
        places = slice(sequence, sequence + count)
        mixed_SND[places] = scaled_dot_product_attention(
            query_SND[places].unsqueeze(2), key, value
        ).squeeze(2)
        sequence += count
    return mixed_SND.flatten(1)


def _groups(lengths: Sequence[int]) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Token rows of neighbours of equal length, with (sequences, length)."""
    start = 0
    for length, same in groupby(lengths):
        count = len(list(same))
        yield slice(start, start + count * length), (count, length)
        start += count * length


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
