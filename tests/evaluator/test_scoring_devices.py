from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xsweep.errors import Stopped
from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.scoring import deal, score_on, score_pairs

CPU = torch.device("cpu")
LENGTHS = {"query_tokens": 8, "document_tokens": 40}


def test_four_lengths_are_dealt_to_two_hands() -> None:
    assert [rows.tolist() for rows in deal(np.array([5, 4, 3, 3]), 2)] == [[0, 3], [1, 2]]


@given(lengths=st.lists(st.integers(1, 300), max_size=60), hands=st.integers(1, 8))
def test_every_row_is_dealt_once_and_hands_differ_by_one_row_at_most(
    lengths: list[int], hands: int
) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    dealt = deal(sizes, hands)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(lengths)))
    sums = [int(sizes[rows].sum()) for rows in dealt]
    assert max(sums) - min(sums) <= max(lengths, default=0)


def _pairs(count: int = 30) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(4)
    return [
        tuple(random.integers(10, 60, int(random.integers(1, most))) for most in (8, 40))
        for _ in range(count)
    ]


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_several_devices_give_the_scores_of_one(make_model_folder: Callable, devices: int) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))
    encoder, pairs = PairEncoder(tokenizer), _pairs()
    expected = score_pairs(model, encoder, pairs, **LENGTHS).scores
    asked: list[tuple[int, int]] = []
    heard: list[int] = []

    def further(place: int, share: list) -> dict:
        asked.append((place, len(share)))
        return {"batch_tokens": 128}

    found = score_on(
        [CPU] * devices, model, pairs, further, progress=heard.append, encoder=encoder, **LENGTHS
    )
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    assert sorted(place for place, _ in asked) == list(range(devices))
    assert sum(share for _, share in asked) == max(heard) == len(pairs)


def test_a_stop_on_one_device_ends_all(make_model_folder: Callable) -> None:
    model, tokenizer = load_cross_encoder(make_model_folder("bert"))

    def stop(done: int) -> None:
        raise Stopped("asked to leave")

    with pytest.raises(Stopped):
        score_on(
            [CPU, CPU],
            model,
            _pairs(),
            lambda place, share: {},
            progress=stop,
            encoder=PairEncoder(tokenizer),
            **LENGTHS,
        )
