"""The processes that share a training, and how they share a global batch."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, distributed


class Ranks(NamedTuple):
    """This process among its peers."""

    rank: int
    size: int


@contextmanager
def process_group(
    leave: Callable[[], None] = distributed.destroy_process_group,
) -> Iterator[Ranks]:
    """Joins the group that RANK and WORLD_SIZE describe (torchrun's variables), else one of one.

    A group of one needs neither a port nor a launcher. The group ends with the block, by `leave`,
    so that one process can train several times; a group that stood before is used and left alone.
    """
    if distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if os.environ.get("WORLD_SIZE", "1") == "1":
        store = distributed.HashStore()
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    else:
        distributed.init_process_group(backend)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        leave()


def total(values: Tensor) -> Tensor:
    """The sums of these values over the ranks, in their place; without a group, as they are."""
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(values)
    return values


def deal(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Numbers of the pieces that each rank computes: dearest first, to whoever has least.

    `deal([5, 1, 3, 3], 2)` gives [[0, 1], [2, 3]].
    """
    hands: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        rank = loads.index(min(loads))
        hands[rank].append(piece)
        loads[rank] += costs[piece]
    return hands
