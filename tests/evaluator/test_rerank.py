import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsweep.evaluator.rerank import best, split, windows


def test_ten_tokens_make_windows_of_four_that_share_one() -> None:
    assert [part.tolist() for part in windows(np.arange(10), 4, 1, 9)] == [
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [6, 7, 8, 9],
    ]
    assert [part.tolist() for part in windows(np.arange(10), 4, 0, 2)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]


@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_windows_cover_a_document_and_none_contains_another(
    length: int, window: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    parts = [part.tolist() for part in windows(np.arange(length), window, overlap, 1000)]
    assert sorted({token for part in parts for token in part}) == list(range(length))
    assert all(set(a) - set(b) for a, b in itertools.pairwise(parts))
    assert all(set(b) - set(a) for a, b in itertools.pairwise(parts))


def test_the_best_window_is_a_pairs_score() -> None:
    query = np.array([1])
    parts, owners = split([(query, np.arange(5)), (query, np.arange(0))], 2, 0, 9)
    assert [part.tolist() for _, part in parts] == [[0, 1], [2, 3], [4], []]
    assert owners.tolist() == [0, 0, 0, 1]
    scores = np.array([0.5, 2.5, -1.0, -3.0], dtype=np.float32)
    assert best(scores, owners, 2).tolist() == [2.5, pytest.approx(-3.0)]
