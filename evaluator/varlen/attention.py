"""Sequences packed end to end without padding, and attention within each of them.

A CPU computes attention sequence by sequence. A GPU takes one call: PyTorch's varlen kernel, which
is FlashAttention, in half precision without dropout; else its memory-efficient kernel, over
sequences that are padded for attention alone.

Shapes: T tokens of all sequences, S sequences, L slots of a padded one, Q queries (T of them, or S
first tokens), K sides, N heads, D width of a head.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map_only

from xsweep.evaluator.pairs import PairIds

KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""PyTorch's kernels over padded sequences, without cuDNN's, which compiles for each new shape."""
SLOTS = 16
"""Padded sequences have a multiple of these slots, else the kernel copies every mask to pad it."""


class Slots(NamedTuple):
    """Places of packed tokens among sequences that are padded to one length."""

    rows_SL: torch.Tensor
    """int64 index of each slot's token; in the padding, of the sequence's last one"""
    slots_T: torch.Tensor
    """int64 index of each token's slot in the flattened S by L matrix"""
    is_token_SL: torch.Tensor
    """bool: False in the padding"""
    masks: dict[tuple[int | None, bool], torch.Tensor]
    """`allowed` by its arguments, once asked for"""

    def allowed(self, window_tokens: int | None, first_only: bool) -> torch.Tensor:
        """bool[S, 1, queries, L]: the slots that each query attends to."""
        if (window_tokens, first_only) not in self.masks:
            allowed = self.is_token_SL[:, None, None]
            if window_tokens is not None:
                places_L = torch.arange(self.rows_SL.shape[1], device=self.rows_SL.device)
                queries = places_L[:1] if first_only else places_L
                allowed = allowed & ((queries[:, None] - places_L).abs() <= window_tokens)
                # Padded queries must attend to something: a softmax over nothing is NaN.
                allowed = allowed | ~self.is_token_SL[:, None, : len(queries), None]
            self.masks[window_tokens, first_only] = allowed
        return self.masks[window_tokens, first_only]


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
    owners_T: torch.Tensor
    """int64 index of each token's sequence"""
    ends: torch.Tensor
    """int32[S + 1]: 0 and the end of each sequence"""
    lengths: list[int]
    """Tokens of each sequence"""
    words_TE: torch.Tensor | None = None
    """The tokens' embeddings, if many packings looked them up together"""
    slots: Slots | None = None
    """For attention over padded sequences; a GPU's layers share them"""
    numbers: list[int] | None = None
    """Each sequence's number in the global batch of a training, else its place here"""

    def words(self, table: torch.nn.Module) -> torch.Tensor:
        """The tokens' embeddings, [T, E]."""
        return table(self.ids_T) if self.words_TE is None else self.words_TE

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Packing":
        """The same sequences with every tensor changed, for example moved to a device."""
        return tree_map_only(torch.Tensor, change, self)

    def with_slots(self) -> "Packing":
        """The same sequences with `slots`, computed on their device while the host goes on."""
        size = -(-max(self.lengths) // SLOTS) * SLOTS
        places_L = torch.arange(size, device=self.ends.device)
        lengths_S1 = self.ends.diff()[:, None]
        rows_SL = self.starts_S[:, None] + torch.minimum(places_L, lengths_S1 - 1)
        slots_T = self.owners_T * size + self.positions_T
        return self._replace(slots=Slots(rows_SL, slots_T, places_L < lengths_S1, {}))


def pack(sequences: Sequence[PairIds]) -> Packing:
    """Puts sequences end to end, in their order, on the host."""
    lengths = [len(each.input_ids) for each in sequences]
    ends = np.cumsum([0, *lengths])
    owners = np.repeat(np.arange(len(lengths)), lengths)
    segments = [each.token_type_ids for each in sequences if each.token_type_ids is not None]
    return Packing(
        ids_T=torch.from_numpy(np.concatenate([each.input_ids for each in sequences])),
        segments_T=torch.from_numpy(np.concatenate(segments)) if segments else None,
        positions_T=torch.from_numpy(np.arange(ends[-1]) - ends[owners]),
        starts_S=torch.from_numpy(ends[:-1]),
        owners_T=torch.from_numpy(owners),
        ends=torch.from_numpy(ends.astype(np.int32)),
        lengths=lengths,
    )


def attend(
    query_SND: torch.Tensor | None,
    sides_TKND: torch.Tensor,
    packing: Packing,
    window_tokens: int | None = None,
    rate: float = 0.0,
) -> torch.Tensor:
    """Attention of every token, or with `query_SND` of each sequence's first one, [Q, N * D].

    The sides are query, key and value, or the last two. With a window a token attends to those at
    most `window_tokens` away. `rate` is the dropout, on a GPU only. On a CPU neighbours of equal
    length share a call, so sort sequences by length.
    """
    if not sides_TKND.is_cpu:
        # The varlen kernel counts a window from the last key, which is not the first token's.
        misplaced = query_SND is not None and window_tokens is not None
        if rate or misplaced or sides_TKND.dtype == torch.float32:
            return attend_padded(query_SND, sides_TKND, packing, window_tokens, rate)
        return attend_varlen(query_SND, sides_TKND, packing, window_tokens)
    query_QND = sides_TKND[:, 0] if query_SND is None else query_SND
    key_TND, value_TND = sides_TKND[:, -2], sides_TKND[:, -1]
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


def attend_varlen(
    query_SND: torch.Tensor | None,
    sides_TKND: torch.Tensor,
    packing: Packing,
    window_tokens: int | None,
) -> torch.Tensor:
    """`attend` by PyTorch's varlen kernel, with gradients."""
    from torch.nn.attention.varlen import varlen_attn

    query_QND, query_ends, longest = sides_TKND[:, 0], packing.ends, max(packing.lengths)
    longest_query = longest
    if query_SND is not None:
        query_QND, longest_query = query_SND, 1
        query_ends = torch.arange(len(packing.ends), dtype=torch.int32, device=query_SND.device)
    window = (-1, -1) if window_tokens is None else (window_tokens, window_tokens)
    mixed_QND = varlen_attn(
        query_QND,
        sides_TKND[:, -2],
        sides_TKND[:, -1],
        query_ends,
        packing.ends,
        longest_query,
        longest,
        window_size=window,
    )
    assert isinstance(mixed_QND, torch.Tensor)
    return mixed_QND.flatten(1)


def attend_padded(
    query_SND: torch.Tensor | None,
    sides_TKND: torch.Tensor,
    packing: Packing,
    window_tokens: int | None,
    rate: float,
) -> torch.Tensor:
    """`attend` by one call over sequences that are padded for attention alone, with gradients."""
    slots = packing.slots
    assert slots, "the encoders compute the slots once for all layers"
    padded_SL = sides_TKND.index_select(0, slots.rows_SL.flatten())
    sides_KSNLD = padded_SL.unflatten(0, slots.rows_SL.shape).permute(2, 0, 3, 1, 4)
    query = sides_KSNLD[0] if query_SND is None else query_SND[:, :, None]
    with sdpa_kernel(KERNELS):
        mixed = scaled_dot_product_attention(
            query,
            sides_KSNLD[-2],
            sides_KSNLD[-1],
            attn_mask=slots.allowed(window_tokens, query_SND is not None),
            dropout_p=rate,
        ).transpose(1, 2)
    if query_SND is not None:
        return mixed[:, 0].flatten(1)
    return mixed.flatten(0, 1).index_select(0, slots.slots_T).flatten(1)
