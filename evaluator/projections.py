"""Linear layers prepared for many calls with the same weights, the activation included.

What is fastest depends on the CPU (MiniLM-L6's shapes, one core). With AVX512, oneDNN gets the
weights in the blocks that its kernels want: 110 GFLOP/s in fp32 against 97 by `F.linear`, 218 in
bf16 against 205 (AMD Zen 4). With AVX2, `F.linear` has 70 to 75 and oneDNN 61 to 66 (AMD Zen 3).
"""

from collections.abc import Callable

import torch
from torch.nn.functional import gelu, linear

Projection = Callable[[torch.Tensor], torch.Tensor]

TYPICAL_ROWS = 1024
"""Tokens for which oneDNN chooses its blocks; other numbers run as well."""


def prepare(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    with_gelu: bool = False,
) -> Projection:
    """`x @ weight.T + bias` in `dtype` (fp32 or bf16), then the exact GELU if asked.

    The weights must not change meanwhile: they may be copied, or not.
    """
    inner = computed_in(dtype, weight.device)
    # Through `dtype` first: where bf16 is computed in fp32, it is bf16 numbers that are multiplied.
    weight = weight.detach().to(dtype).to(inner)
    bias = None if bias is None else bias.detach().to(dtype).to(inner)
    if weight.device.type == "cpu" and lays_out():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
        after, algorithm = ("gelu", "none") if with_gelu else ("none", "")

        def product(states: torch.Tensor) -> torch.Tensor:
            return torch.ops.mkldnn._linear_pointwise(states, packed, bias, after, [], algorithm)

    elif with_gelu:

        def product(states: torch.Tensor) -> torch.Tensor:
            return gelu(linear(states, weight, bias))

    else:

        def product(states: torch.Tensor) -> torch.Tensor:
            return linear(states, weight, bias)

    return lambda states: product(states.to(inner)).to(dtype)


def lays_out() -> bool:
    """Whether oneDNN's blocked weights are worth their making on this CPU."""
    return (
        torch.backends.mkldnn.is_available() and "AVX512" in torch.backends.cpu.get_cpu_capability()
    )


def computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What numbers of this type are multiplied in: fp32 for bf16 on a CPU without units for that.

    Such units sum products of bf16 numbers in fp32, so the results are the same but for the order
    of sums; PyTorch's own bf16 products without them are ten times slower than fp32 (AMD Zen 3).
    """
    if dtype != torch.bfloat16 or device.type != "cpu":
        return dtype
    has_units = torch.backends.mkldnn.is_available() and (
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return torch.bfloat16 if has_units else torch.float32
