from itertools import pairwise
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xsweep.evaluator.pairs import PairIds
from xsweep.evaluator.varlen.attention import attend, attend_padded, attend_varlen, pack


def _packed(lengths: list[int]):
    return pack([PairIds(np.arange(length), None) for length in lengths])


def _plain_attention(sides: torch.Tensor, lengths: list[int], window: int | None) -> torch.Tensor:
    """Softmax over all tokens under a block-diagonal mask, written out."""
    owner_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    allowed_TT = owner_T[:, None] == owner_T
    if window is not None:
        places_T = torch.arange(len(owner_T))
        allowed_TT &= (places_T[:, None] - places_T).abs() <= window
    query, key, value = sides
    logits_NTT = torch.einsum("tnd,und->ntu", query, key) / query.shape[-1] ** 0.5
    weights_NTT = logits_NTT.masked_fill(~allowed_TT, -torch.inf).softmax(-1)
    return torch.einsum("ntu,und->tnd", weights_NTT, value).flatten(1)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8).map(sorted),
    window=st.one_of(st.none(), st.integers(1, 5)),
)
@settings(max_examples=60, deadline=None)
def test_tokens_see_their_own_sequence_and_window_only(
    lengths: list[int], window: int | None
) -> None:
    torch.manual_seed(len(lengths))
    sides = torch.randn(3, sum(lengths), 2, 4)
    packing = _packed(lengths)
    expected = _plain_attention(sides, lengths, window)
    sides_TKND = sides.transpose(0, 1)
    torch.testing.assert_close(attend(None, sides_TKND, packing, window), expected)
    first = attend(sides[0][packing.starts_S], sides_TKND[:, 1:], packing, window)
    torch.testing.assert_close(first, expected[packing.starts_S])
    packing = packing.with_slots()
    padded = attend_padded(None, sides_TKND, packing, window, 0.0)
    torch.testing.assert_close(padded, expected)
    first = attend_padded(sides[0][packing.starts_S], sides_TKND[:, 1:], packing, window, 0.0)
    torch.testing.assert_close(first, expected[packing.starts_S])


def _documented_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size):
    """`varlen_attn` as PyTorch documents it: query i of a sequence sees the keys from i - left to
    i + right; -1 is no limit. The kernel itself runs on GPUs only."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    left, right = window_size
    mixed = torch.empty_like(query)
    ends_q, ends_k = cu_seq_q.tolist(), cu_seq_k.tolist()
    assert (ends_q[0], ends_q[-1], ends_k[-1]) == (0, len(query), len(key))
    for (start, end), (first, last) in zip(pairwise(ends_q), pairwise(ends_k), strict=True):
        assert end - start <= max_q
        assert last - first <= max_k
        for place in range(end - start):
            since = first if left < 0 else max(first, first + place - left)
            until = last if right < 0 else min(last, first + place + right + 1)
            keys, values = key[since:until], value[since:until]
            logits_KN = (keys * query[start + place]).sum(-1) / query.shape[-1] ** 0.5
            mixed[start + place] = (logits_KN.softmax(0)[..., None] * values).sum(0)
    return mixed


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    window=st.one_of(st.none(), st.integers(1, 5)),
)
@settings(max_examples=40, deadline=None)
def test_the_gpu_kernel_gets_arguments_for_the_same_attention(
    lengths: list[int], window: int | None
) -> None:
    torch.manual_seed(len(lengths))
    sides, packing = torch.randn(3, sum(lengths), 2, 4), _packed(lengths)
    with patch("torch.nn.attention.varlen.varlen_attn", _documented_varlen):
        found = attend_varlen(None, sides.transpose(0, 1), packing, window)
        first = attend_varlen(sides[0][packing.starts_S], sides[1:].transpose(0, 1), packing, None)
    torch.testing.assert_close(found, _plain_attention(sides, lengths, window))
    torch.testing.assert_close(first, _plain_attention(sides, lengths, None)[packing.starts_S])


def test_positions_restart_with_every_sequence() -> None:
    packing = _packed([3, 1, 2])
    assert packing.positions_T.tolist() == [0, 1, 2, 0, 0, 1]
    assert packing.starts_S.tolist() == [0, 3, 4]
    assert packing.lengths == [3, 1, 2]
    assert packing.owners_T.tolist() == [0, 0, 0, 1, 2, 2]
    assert packing.ends.tolist() == [0, 3, 4, 6]
    assert packing.segments_T is None


def test_slots_of_padded_sequences_hold_each_token_once() -> None:
    packing = _packed([3, 1, 17]).with_slots()
    slots = packing.slots
    assert slots
    assert slots.is_token_SL.shape == (3, 32)
    assert slots.is_token_SL.sum(1).tolist() == packing.lengths
    assert slots.rows_SL[0, :5].tolist() == [0, 1, 2, 2, 2]
    assert slots.rows_SL.flatten()[slots.slots_T].tolist() == list(range(21))


def test_segments_are_kept() -> None:
    pairs = [PairIds(np.array([5, 6]), np.array([0, 1])), PairIds(np.array([7]), np.array([1]))]
    packing = pack(pairs)
    assert packing.segments_T is not None
    assert packing.ids_T.tolist() == [5, 6, 7]
    assert packing.segments_T.tolist() == [0, 1, 1]
