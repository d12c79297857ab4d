"""Rates of devices: published or measured peaks, and the share of them that jobs reach."""

import time
from functools import cache
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from evaluator.cpu import bf16_units

TRAINING_SHARE = 0.30
SCORING_SHARE = 0.40
"""Of the peak, assumed where nothing was measured: what well-kept encoders reach on such GPUs."""
CPU_TRAINING_SHARE, CPU_SCORING_SHARE = 0.6, 0.75
"""Of a core's peak, in fp32 and bf16: 62% and 63% were seen, and 62% to 89%."""
LAYER_S, STEP_S = 0.0012, 0.005
"""Launching the kernels of one layer's training step and of the optimiser: small models on large
GPUs wait for these and not for arithmetic. Assumed as well."""


class Device(NamedTuple):
    """One GPU, or one core of a CPU."""

    name: str
    flops_per_s: float
    """Peak of dense matrix products: in bf16, for a core in fp32."""
    memory_bytes: float
    is_gpu: bool = True
    bf16_times: float = 1.0
    """How much faster a core computes bf16 products."""


GPUS = {
    device.name: device
    for device in (
        Device("H200", 989e12, 141e9),
        Device("H100", 989e12, 80e9),
        Device("A100", 312e12, 80e9),
        Device("L40S", 362e12, 48e9),
        Device("A10G", 70e12, 24e9),
        Device("L4", 121e12, 24e9),
        Device("RTX4090", 165e12, 24e9),
        Device("RTX3090", 71e12, 24e9),
    )
}
"""Dense bf16 as in the vendor's data sheets, without sparsity."""

CPU_CORE = Device("CPU", 1.1e11, 0, is_gpu=False)
"""A core with AVX-512, without units for bf16."""


@cache
def this_core() -> Device:
    """A core of this machine, its fp32 peak measured in about 0.1 s.

    Units for bf16 are taken to double it: 111 and 222 GFLOP/s were seen (AMD EPYC, AVX512-BF16).
    """
    left, right = np.ones((1024, 384), np.float32), np.ones((384, 1536), np.float32)
    with threadpool_limits(1):
        fastest_s = min(_seconds_of_product(left, right) for _ in range(10))
    rate = 2 * left.size * right.shape[1] / fastest_s
    return CPU_CORE._replace(flops_per_s=rate, bf16_times=2.0 if bf16_units() else 1.0)


def _seconds_of_product(left: np.ndarray, right: np.ndarray) -> float:
    started = time.perf_counter()
    left @ right
    return time.perf_counter() - started
