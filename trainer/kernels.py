"""The kernels of `evaluator.kernels` for training: with gradients and dropout.

On a CPU they save what autograd and autocast spend around the matrix products: weights are laid
out (and cast to bf16) once for all passes of a micro-batch, query, key and value are one product,
and dropout is drawn as 16 random bits a number by a fast generator (see `trainer.dropout`).
"""

import torch
from torch import Tensor
from torch.nn.functional import dropout, gelu
from torch.utils.checkpoint import checkpoint

from evaluator.kernels import Kernels, Layer, Weights, rotated, side_by_side
from evaluator.packing import Packing
from evaluator.projections import Projection, computed_in, prepare
from trainer.attention import attend_with_gradients
from trainer.dropout import dropped


class TrainingKernels(Kernels):
    """Kernels for one micro-batch, with gradients and dropout; weights must not change meanwhile.

    With `recompute`, `run` keeps no activations and computes them again for the gradient.
    """

    def __init__(self, dtype: torch.dtype, *, dropout: bool, recompute: bool = False) -> None:
        super().__init__(dtype)
        self.dropout, self.recompute = dropout, recompute

    def linear(self, *parts: Weights, with_gelu: bool = False) -> Projection:
        prepared = _Prepared(parts, self.dtype)
        return (lambda states: gelu(prepared(states))) if with_gelu else prepared

    def gated(self, layer: Weights, activation: torch.nn.Module | None) -> Projection:
        both = _Prepared((layer,), self.dtype)
        act = activation or gelu

        def project(states: Tensor) -> Tensor:
            inner_TI, gate_TI = both(states).chunk(2, -1)
            return act(inner_TI) * gate_TI

        return project

    def attend(
        self, sides_T3ND: Tensor, packing: Packing, window_tokens: int | None, rate: float
    ) -> Tensor:
        return attend_with_gradients(None, sides_T3ND, packing, window_tokens, self._rate(rate))

    def attend_from_first(
        self,
        query_SND: Tensor,
        sides_T2ND: Tensor,
        packing: Packing,
        window_tokens: int | None,
        rate: float,
    ) -> Tensor:
        return attend_with_gradients(
            query_SND, sides_T2ND, packing, window_tokens, self._rate(rate)
        )

    def rotate(self, sides_TKND: Tensor, rotation: tuple[Tensor, Tensor], count: int) -> Tensor:
        return _Rotate.apply(sides_TKND, *rotation, count)

    def drop(self, states: Tensor, rate: float) -> Tensor:
        rate = self._rate(rate)
        if not rate or states.device.type != "cpu":
            return dropout(states, rate) if rate else states
        return dropped(None, states, rate)

    def add(self, residual: Tensor, states: Tensor, rate: float) -> Tensor:
        rate = self._rate(rate)
        if not rate:
            return residual + states
        if states.device.type != "cpu":
            return residual + dropout(states, rate)
        return dropped(residual, states, rate)

    def run(self, layer: Layer, *arguments: object) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *arguments, use_reentrant=False)
        return layer(*arguments)

    def _rate(self, rate: float) -> float:
        return rate if self.dropout else 0.0


class _Prepared:
    """Linear layers side by side, laid out for both directions when they are first needed."""

    def __init__(self, parts: tuple[Weights, ...], dtype: torch.dtype) -> None:
        self.parts, self.dtype = parts, dtype
        self.whole: Weights | None = None
        self.ahead: Projection | None = None
        self.back: Projection | None = None

    def __call__(self, states: Tensor) -> Tensor:
        weights, biases = zip(*self.parts, strict=True)
        return _Linear.apply(states, self, *weights, *(b for b in biases if b is not None))

    def forward(self, states: Tensor) -> Tensor:
        if self.ahead is None:
            weight, bias = side_by_side(self.parts)
            self.whole = weight.detach().to(self.dtype), bias
            self.ahead = prepare(*self.whole, self.dtype)
        return self.ahead(states)

    def backward(self, slopes: Tensor) -> Tensor:
        if self.back is None:
            assert self.whole
            self.back = prepare(self.whole[0].t().contiguous(), None, self.dtype)
            self.whole = None
        return self.back(slopes)


class _Linear(torch.autograd.Function):
    """A product with prepared weights; gradients of the weights are fp32."""

    @staticmethod
    def forward(ctx, states: Tensor, prepared: _Prepared, *parameters: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(states)
        ctx.prepared = prepared
        return prepared.forward(states)

    @staticmethod
    def backward(ctx, slopes: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        (states,) = ctx.saved_tensors
        slopes = slopes.contiguous()
        before = ctx.prepared.backward(slopes) if ctx.needs_input_grad[0] else None
        parts = ctx.prepared.parts
        sizes = [len(weight) for weight, _ in parts]
        inner = computed_in(slopes.dtype, slopes.device)
        of_weights = (slopes.to(inner).t() @ states.to(inner)).float().split(sizes)
        of_biases: tuple[Tensor, ...] = ()
        if parts[0][1] is not None:
            of_biases = slopes.sum(0, dtype=torch.float32).split(sizes)
        return before, None, *of_weights, *of_biases


class _Rotate(torch.autograd.Function):
    """A rotation, whose gradient is turned back by the same angles."""

    @staticmethod
    def forward(ctx, sides_TKND: Tensor, cosines: Tensor, sines: Tensor, count: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(cosines, sines)
        ctx.count = count
        turned = sides_TKND.clone()
        turned[:, :count] = rotated(sides_TKND[:, :count], cosines, sines)
        return turned

    @staticmethod
    def backward(ctx, slopes_TKND: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        cosines, sines = ctx.saved_tensors
        turned = slopes_TKND.clone()
        turned[:, : ctx.count] = rotated(slopes_TKND[:, : ctx.count], cosines, -sines)
        return turned, None, None, None
