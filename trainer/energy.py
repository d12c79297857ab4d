"""Energy by the machine's own counters: the processors' (RAPL) and each GPU's (NVML).

Whole devices are counted, whoever uses them, and nothing else of the machine (disks, fans). Linux
lets only root read the processors' counters unless told otherwise; a virtual machine has none.
"""

import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import distributed

log = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")


class Counter(NamedTuple):
    """A counter that only grows, until it starts again from 0."""

    read: Callable[[], float]
    """Joules"""
    range_joules: float
    """Where it starts again; infinity: never."""


class EnergyMeter:
    """What some counters counted since the meter was made, or since the last question."""

    def __init__(self, counters: list[Counter]) -> None:
        self._counters = [(counter, counter.read()) for counter in counters]
        self._joules = 0.0

    def sample(self) -> None:
        """To be called at least once in a counter's range, which is some ten minutes."""
        for place, (counter, before) in enumerate(self._counters):
            now = counter.read()
            self._joules += now - before + (counter.range_joules if now < before else 0.0)
            self._counters[place] = counter, now

    def spent(self) -> float:
        """Joules since the last call; 0 where nothing counts."""
        self.sample()
        joules, self._joules = self._joules, 0.0
        return joules


def open_meter() -> EnergyMeter:
    """A meter for this rank: its GPU, and the processors where it is the first rank of a host."""
    hosts, rank = [socket.gethostname()], 0
    if distributed.is_initialized():
        rank = distributed.get_rank()
        hosts *= distributed.get_world_size()
        distributed.all_gather_object(hosts, socket.gethostname())
    return EnergyMeter((processors() if is_first(hosts, rank) else []) + gpu())


def is_first(hosts: Sequence[str], rank: int) -> bool:
    """Whether no lower rank runs on the same host; of hosts a, b, a, b ranks 0 and 1 are."""
    return hosts.index(hosts[rank]) == rank


def processors(folder: Path = POWERCAP) -> list[Counter]:
    """One counter for each processor package that may be read."""
    counters = []
    for zone in sorted(folder.glob("intel-rapl:*")):
        if zone.name.count(":") > 1:  # a part of a package, which counts it already
            continue
        try:
            _joules(zone / "energy_uj")
            range_joules = _joules(zone / "max_energy_range_uj")
        except (OSError, ValueError):
            continue
        counters.append(Counter(partial(_joules, zone / "energy_uj"), range_joules))
    return counters


def _joules(microjoules: Path) -> float:
    return int(microjoules.read_text()) / 1e6


def gpu() -> list[Counter]:
    """The counter of the GPU in use, where there is one; it needs the package nvidia-ml-py."""
    if not torch.cuda.is_available():
        return []
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception as error:  # NVML's own errors, a missing driver, a card without the counter
        log.info("the GPU's energy is not measured: %s", error)
        return []

    def joules() -> float:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000

    return [Counter(joules, float("inf"))]
