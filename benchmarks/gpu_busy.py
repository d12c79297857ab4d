"""How much of the time a device computes; the rest it waits for the host.

On a CPU: how much of it is spent in PyTorch's operators, the rest in Python and NumPy.
"""

import argparse
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import gpu_rates
import torch
from gpu_models import World
from gpu_report import Figures, Report
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

LONGEST_S = 1.0
"""A profile holds an event for every kernel or operator."""


def measure(report: Report, options: argparse.Namespace, world: World) -> None:
    """A row for every shape, kind of work and layout: its rate under the profiler and `busy`."""
    options = argparse.Namespace(**vars(options))
    options.seconds = min(options.seconds, LONGEST_S)
    for shape in options.shapes:
        for layout in gpu_rates.layouts(world.model(shape)[0]):
            for work in (scoring, training):
                row = f"{shape}, {work.__name__}, {layout}"
                report.add("busy", row, partial(work, options, world, shape, layout))


def scoring(options: argparse.Namespace, world: World, shape: str, layout: str) -> Figures:
    """Scoring of the pairs at their real lengths."""
    share: Figures = {}
    figures = gpu_rates.score(
        *(world, *world.model(shape), world.pairs["real"], layout, options, None),
        around=busy(options.device, share),
    )
    return share | figures


def training(options: argparse.Namespace, world: World, shape: str, layout: str) -> Figures:
    """Steps of the first objective under the plain engine."""
    share: Figures = {}
    way = gpu_rates.Way(options.objectives[0], layout, "plain")
    around = busy(options.device, share)
    figures = gpu_rates.train(world, shape, way, options, None, around=around)
    return share | figures


@contextmanager
def busy(device: torch.device, figures: Figures) -> Iterator[None]:
    """Notes the share of the block's wall time in which the device computed, 0 to 1."""
    on_gpu = device.type == "cuda"
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        gpu_rates.clock(device)
        began_s = time.perf_counter()
        yield
        gpu_rates.clock(device)
        wall_s = time.perf_counter() - began_s
    spans = (
        (event.time_range.start, event.time_range.end)
        for event in seen.events()
        if event.device_type == kind
    )
    figures["busy"] = round(covered(spans) / 1e6 / wall_s, 3)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans: `covered([(0, 2), (1, 3), (5, 6)])` is 4."""
    total = 0.0
    reached = float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
