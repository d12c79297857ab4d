"""The ranks (processes) of one training: their process group, sums over them, balanced shares."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from xsweep.errors import SetupError


@contextmanager
def process_group(
    destroy: Callable[[], None] = distributed.destroy_process_group,
) -> Iterator[None]:
    """Joins the group that RANK and WORLD_SIZE (torchrun's variables) describe, else a group of 1.

    A group of 1 needs neither a port nor a launcher. `destroy` ends the group with the block, so
    that one process can train several times; a group that exists already is used and kept.
    """
    if distributed.is_initialized():
        yield
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if os.environ.get("WORLD_SIZE", "1") == "1":
        store = distributed.HashStore()
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    else:
        distributed.init_process_group(backend)
    try:
        yield
    finally:
        destroy()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sums values over the ranks, in place; leaves them unchanged without a group."""
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(values)
    return values


def check_same_step(step: int, device: torch.device) -> None:
    """Raises SetupError on every rank if the ranks would resume from different steps."""
    ours = torch.tensor([step, 1], dtype=torch.float64, device=device)
    steps, ranks = sum_over_ranks(ours).tolist()
    if steps != step * ranks:
        raise SetupError(
            f"the ranks of this training found different checkpoints (this one step {step}): its "
            "folder must be the same on all nodes; check the store there"
        )


def balance(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Assigns pieces to ranks, the most expensive first, each to the rank with the least cost.

    `balance([5, 1, 3, 3], 2)` gives [[0, 1], [2, 3]].
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        rank = loads.index(min(loads))
        shares[rank].append(piece)
        loads[rank] += costs[piece]
    return shares
