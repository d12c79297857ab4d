import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import xsweep.trainer.loop
from xsweep.errors import SetupError
from xsweep.trainer.distributed import deal
from xsweep.trainer.loop import agree


def test_the_dearest_pieces_go_to_whoever_has_least():
    assert deal([5, 1, 3, 3], 2) == [[0, 1], [2, 3]]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(1, 5))
def test_every_piece_is_dealt_once_and_nobody_is_far_ahead(costs, ranks):
    hands = deal(costs, ranks)
    assert sorted(piece for hand in hands for piece in hand) == list(range(len(costs)))
    loads = [sum(costs[piece] for piece in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(costs)


def test_ranks_that_found_different_checkpoints_do_not_go_on(monkeypatch):
    def with_a_peer_at(step):
        monkeypatch.setattr(
            xsweep.trainer.loop,
            "total",
            lambda ours: ours + torch.tensor([step, 1], dtype=ours.dtype),
        )

    with_a_peer_at(40)
    agree(40, torch.device("cpu"))
    with_a_peer_at(20)
    with pytest.raises(SetupError, match=r"different checkpoints \(this one step 40\)"):
        agree(40, torch.device("cpu"))
