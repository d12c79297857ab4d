"""Layer primitives of the padding-free encoders, for scoring.

`xsweep.trainer.cpu_kernels` has the ones with gradients. Linear layers are prepared for many calls
with the same weights. The fastest preparation depends on the CPU (MiniLM-L6's shapes, one core).
With AVX512, oneDNN gets the weights in the blocks that its kernels want: 110 GFLOP/s in fp32
against 97 by `F.linear`, 218 in bf16 against 205 (AMD Zen 4). With AVX2, `F.linear` has 70 to 75
and oneDNN 61 to 66 (AMD Zen 3).
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch.nn.functional import gelu, linear

from xsweep.evaluator.device import has_wide_amd_units
from xsweep.evaluator.varlen.attention import Packing, attend

Projection = Callable[[torch.Tensor], torch.Tensor]
Layer = Callable[..., torch.Tensor]
Weights = tuple[torch.Tensor, torch.Tensor | None]
"""Weight [out, in] and bias [out] of a linear layer, or of a part of its outputs."""

TYPICAL_ROWS = 1024
"""Tokens for which oneDNN chooses its blocks; other numbers run as well."""


def prepare(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    with_gelu: bool = False,
) -> Projection:
    """`x @ weight.T + bias` in `dtype` (fp32 or bf16), then the exact GELU with `with_gelu`.

    The weights must not change while it is in use: they may be copied, or not.
    """
    inner = computed_in(dtype, weight.device)
    # Through `dtype` first: bf16 computed in fp32 still multiplies bf16 numbers.
    weight = weight.detach().to(dtype).to(inner)
    bias = None if bias is None else bias.detach().to(dtype).to(inner)
    if weight.device.type == "cpu" and blocks_weights():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
        after, algorithm = ("gelu", "none") if with_gelu else ("none", "")
        product = torch.ops.mkldnn._linear_pointwise
        return lambda states: product(states.to(inner), packed, bias, after, [], algorithm).to(
            dtype
        )
    if with_gelu:
        return lambda states: gelu(linear(states.to(inner), weight, bias)).to(dtype)
    return lambda states: linear(states.to(inner), weight, bias).to(dtype)


def blocks_weights() -> bool:
    """True if oneDNN's blocked weights pay off on this CPU."""
    return (
        torch.backends.mkldnn.is_available() and "AVX512" in torch.backends.cpu.get_cpu_capability()
    )


def outer_product(left_TA: torch.Tensor, right_TB: torch.Tensor) -> torch.Tensor:
    """`left_TA.t() @ right_TB`, [A, B], without gradients.

    In fp32 MKL uses 256 bits of AMD's units. On Zen 5, which has 512, it reaches 110 GFLOP/s and
    oneDNN 200, although that copies both sides; on Zen 4 MKL has 100 of at most 115 (shapes of
    MiniLM-L6, one core). In bf16 PyTorch takes oneDNN by itself.
    """
    in_fp32 = left_TA.is_cpu and left_TA.dtype == torch.float32
    if in_fp32 and has_wide_amd_units() and blocks_weights():
        left_AT, right_BT = left_TA.t(), right_TB.t()
        return torch.ops.mkldnn._linear_pointwise(left_AT, right_BT, None, "none", [], "none")
    return left_TA.t() @ right_TB


def computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of products of numbers of `dtype`: fp32 for bf16 on a CPU without bf16 units.

    Such units sum products of bf16 numbers in fp32, so the results differ only by the order of
    sums; PyTorch's own bf16 products without them are ten times slower than fp32 (AMD Zen 3).
    """
    if dtype != torch.bfloat16 or device.type != "cpu":
        return dtype
    has_units = torch.backends.mkldnn.is_available() and (
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return torch.bfloat16 if has_units else torch.float32


class Kernels:
    """The primitives of a forward pass, for scoring: without dropout and gradients.

    Weights are copied when a layer is first called. Matrix products are computed in `dtype`,
    residuals and normalisations in fp32. Shapes: T tokens, S sequences, H width of the model,
    N heads, D width of a head.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def linear(self, *parts: Weights, with_gelu: bool = False) -> Projection:
        """Linear layers over the same input as one, their outputs side by side; then GELU."""
        # Prepared by the first call: a layer declares more projections than it uses.
        prepared = cache(lambda: prepare(*side_by_side(parts), self.dtype, with_gelu=with_gelu))
        return lambda states: prepared()(states)

    def gated(self, layer: Weights, activation: torch.nn.Module | None) -> Projection:
        """A gated layer: the activated first half of its outputs times the other half.

        `activation` None is GELU.
        """
        (inner, other), (inner_bias, other_bias) = chunks(layer, 2)
        widen = prepare(inner, inner_bias, self.dtype, with_gelu=activation is None)
        gate = prepare(other, other_bias, self.dtype)

        def project(states: torch.Tensor) -> torch.Tensor:
            inner_TI = widen(states)
            if activation is not None:
                inner_TI = activation(inner_TI)
            return inner_TI.mul_(gate(states))

        return project

    def attend(
        self,
        query_SND: torch.Tensor | None,
        sides_TKND: torch.Tensor,
        packing: Packing,
        window_tokens: int | None,
        rate: float,
    ) -> torch.Tensor:
        """Attention as `varlen.attention.attend` defines it; `rate` is its dropout in training."""
        return attend(query_SND, sides_TKND, packing, window_tokens)

    def rotate(
        self, sides_TKND: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], count: int
    ) -> torch.Tensor:
        """Rotary positions for the first `count` of K sides; the input may be overwritten."""
        sides_TKND[:, :count] = rotated(sides_TKND[:, :count], *rotation)
        return sides_TKND

    def drop(self, states: torch.Tensor, rate: float) -> torch.Tensor:
        """Dropout in training: 0 with probability `rate`, else divided by 1 - `rate`."""
        return states

    def add(self, residual: torch.Tensor, states: torch.Tensor, rate: float) -> torch.Tensor:
        """The fp32 residual plus the output of a layer, in training after dropout."""
        return residual + states.float()

    def head(self, head: Layer, *arguments: object) -> torch.Tensor:
        """A model's own head on some arguments."""
        return head(*arguments)

    def run(self, layer: Layer, *arguments: object) -> torch.Tensor:
        """Calls a layer; training may recompute its activations for the gradient."""
        return layer(*arguments)


def weights(layer: torch.nn.Module) -> Weights:
    """Weight and bias of a `torch.nn.Linear`."""
    assert isinstance(layer, torch.nn.Linear)
    return layer.weight, layer.bias


def chunks(
    layer: Weights, parts: int
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor | None, ...]]:
    """Weights and biases of equal parts of a layer's outputs."""
    weight, bias = layer
    return weight.chunk(parts), (None,) * parts if bias is None else bias.chunk(parts)


def side_by_side(parts: Sequence[Weights]) -> Weights:
    """One layer that gives the outputs of several, which all have a bias or all have none."""
    if len(parts) == 1:
        return parts[0]
    biases = [bias for _, bias in parts if bias is not None]
    return torch.cat([weight for weight, _ in parts]), torch.cat(biases) if biases else None


def rotated(
    states_TKND: torch.Tensor, cosines_TD: torch.Tensor, sines_TD: torch.Tensor
) -> torch.Tensor:
    """Rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864), computed in fp32.

    The result has the dtype of the input.
    """
    states = states_TKND.float()
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), -1)
    cosines, sines = cosines_TD[:, None, None], sines_TD[:, None, None]
    return torch.addcmul(states * cosines, turned, sines).to(states_TKND.dtype)
