"""The ranks (processes) of one training: their process group, sums over them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import Parameter

from xsweep.errors import Stopped

TIMEOUT = timedelta(hours=1)
"""Longest wait for another rank, which may be writing a checkpoint or computing the last part of a
validation. A rank that fails is noticed at once; this ends ranks whose machine went silent."""

BUCKET_NUMBERS = 6_500_000
"""Gradients that are summed in one exchange: 26 MB, as DistributedDataParallel does."""


def own_device() -> torch.device:
    """This rank's device, which becomes the current one of the calling thread: the GPU that
    LOCAL_RANK (torchrun's variable) numbers among the visible ones, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # A launcher may show each rank its own GPU alone.
    number = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


@contextmanager
def process_group(
    destroy: Callable[[], None] = distributed.destroy_process_group,
) -> Iterator[None]:
    """Joins the group that RANK and WORLD_SIZE (torchrun's variables) describe, else a group of 1.

    A group of 1 needs neither a port nor a launcher. `destroy` ends the group with the block, so
    that one process can train several times; a group that exists already is used and kept. After
    an error the group is aborted: its end would wait for operations that never complete, and the
    other ranks would wait for this one.
    """
    if distributed.is_initialized():
        yield
        return
    device = own_device()
    on_gpu = device.type == "cuda"
    settings: dict[str, Any] = {"timeout": TIMEOUT, "device_id": device if on_gpu else None}
    if os.environ.get("WORLD_SIZE", "1") == "1":
        settings |= {"store": distributed.HashStore(), "rank": 0, "world_size": 1}
    distributed.init_process_group("nccl" if on_gpu else "gloo", **settings)
    try:
        yield
    except Stopped:  # on all ranks, after the same operations
        destroy()
        raise
    except BaseException:
        abort() if distributed.get_world_size() > 1 else destroy()
        raise
    destroy()


def abort() -> None:
    """Ends the process group at once: operations under way fail, here and on the other ranks."""
    distributed.distributed_c10d._abort_process_group()


def rank_and_ranks() -> tuple[int, int]:
    """This process's rank and the number of ranks; 0 and 1 without a group."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sums values over the ranks, in place; leaves them unchanged without a group."""
    if rank_and_ranks()[1] > 1:
        distributed.all_reduce(values)
    return values


class GradientBuckets:
    """Gradients in flat buckets, summed over ranks while the last backward pass computes others.

    Unlike DistributedDataParallel's, a rank whose backward pass failed can complete the exchange,
    so that no other waits for it: every rank sums the same buckets in the same order.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        # Gradients come about in the reverse order of the layers.
        self.parameters = list(reversed(parameters))
        sizes = [parameter.numel() for parameter in self.parameters]
        flat = torch.zeros(sum(sizes), device=self.parameters[0].device)
        self.views = [
            part.view_as(parameter)
            for part, parameter in zip(flat.split(sizes), self.parameters, strict=True)
        ]
        self.buckets: list[Tensor] = []
        self.bucket_of: list[int] = []
        self.waits: list[distributed.Work] = []
        self.missing: list[int] = []
        self.reached: set[int] = set()
        """Parameters that had a gradient in any step."""
        self.expected = set(range(len(sizes)))
        """Parameters that a backward pass reaches."""
        start = end = 0
        for place, (size, parameter) in enumerate(zip(sizes, self.parameters, strict=True)):
            end += size
            self.bucket_of.append(len(self.buckets))
            if end - start >= BUCKET_NUMBERS or place == len(sizes) - 1:
                self.buckets.append(flat[start:end])
                start = end
            parameter.register_post_accumulate_grad_hook(partial(self._count, place))
        self.clear()

    def clear(self) -> None:
        """Zeroes all gradients."""
        for bucket in self.buckets:
            bucket.zero_()
        for parameter, view in zip(self.parameters, self.views, strict=True):
            parameter.grad = view

    def overlap(self) -> None:
        """Sums each bucket as soon as the coming backward pass has computed its gradients."""
        self.missing = [0] * len(self.buckets)
        for place in self.expected:
            self.missing[self.bucket_of[place]] += 1

    def reduce(self) -> None:
        """Sums the buckets that are not under way, and waits for all."""
        while len(self.waits) < len(self.buckets):
            self._sum_next()
        for work in self.waits:
            work.wait()
        self.waits, self.missing = [], []

    def hide_unused(self) -> None:
        """Leaves no gradient to parameters that the model does not use, so none moves them."""
        self.expected = set(self.reached)
        for place, parameter in enumerate(self.parameters):
            if place not in self.expected:
                parameter.grad = None

    def _count(self, place: int, _: Tensor) -> None:
        self.reached.add(place)
        if self.missing:
            self.missing[self.bucket_of[place]] -= 1
            while len(self.waits) < len(self.buckets) and self.missing[len(self.waits)] <= 0:
                self._sum_next()

    def _sum_next(self) -> None:
        work = distributed.all_reduce(self.buckets[len(self.waits)], async_op=True)
        assert work
        self.waits.append(work)


def least_over_ranks(value: int, device: torch.device) -> int:
    """The least of the ranks' values; the value itself without a group."""
    least = torch.tensor(value, device=device)
    if rank_and_ranks()[1] > 1:
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
    return int(least)
