"""Rates of devices: published peaks, and the share of them that this model of cost assumes."""

from typing import NamedTuple

TRAINING_SHARE = 0.30
SCORING_SHARE = 0.40
"""Of the peak, assumed where nothing was measured: what well-kept encoders reach on such GPUs."""
LAYER_S, STEP_S = 0.0012, 0.005
"""Launching the kernels of one layer's training step and of the optimiser: small models on large
GPUs wait for these and not for arithmetic. Assumed as well."""


class Device(NamedTuple):
    """One GPU, or one core of a CPU."""

    name: str
    flops_per_s: float
    """Peak of dense bf16 matrix products; for a core, what this project's loops reach."""
    memory_bytes: float
    is_gpu: bool = True


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

CPU_CORE = Device("CPU", 1e11, 0, is_gpu=False)
"""Seen on a core with AVX-512: 70 (training) to 110 (scoring) GFLOP/s in fp32."""
