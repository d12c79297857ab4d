import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xsweep.errors import SetupError
from xsweep.trainer.distributed import balance, check_same_step


def test_the_most_expensive_piece_goes_to_the_rank_with_the_least_load():
    assert balance([5, 1, 3, 3], 2) == [[0, 1], [2, 3]]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(1, 5))
def test_every_piece_is_assigned_once_and_loads_are_balanced(costs, ranks):
    shares = balance(costs, ranks)
    assert sorted(piece for share in shares for piece in share) == list(range(len(costs)))
    loads = [sum(costs[piece] for piece in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs)


def test_ranks_that_found_different_checkpoints_do_not_resume(monkeypatch):
    def with_a_peer_at(step):
        monkeypatch.setattr(
            "xsweep.trainer.distributed.sum_over_ranks",
            lambda ours: ours + torch.tensor([step, 1], dtype=ours.dtype),
        )

    with_a_peer_at(40)
    check_same_step(40, torch.device("cpu"))
    with_a_peer_at(20)
    with pytest.raises(SetupError, match=r"different checkpoints \(this one step 40\)"):
        check_same_step(40, torch.device("cpu"))
