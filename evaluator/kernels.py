"""The parts that forward passes on packed tokens are made of, for scoring.

`evaluator.unpadded_bert` and `evaluator.unpadded_modernbert` put them together;
`trainer.kernels` has those that can be differentiated.
"""

from collections.abc import Callable, Sequence

import torch

from evaluator.packing import Packing, attend, attend_from_first
from evaluator.projections import Projection, prepare

Weights = tuple[torch.Tensor, torch.Tensor | None]
"""Weight [out, in] and bias [out] of a linear layer, or of a part of its outputs."""
Layer = Callable[..., torch.Tensor]


class Kernels:
    """The parts of a forward pass, for scoring: without dropout and gradients.

    Weights are copied when a layer is first called. Matrix products are computed in `dtype`,
    residuals and normalisations in fp32. Shapes: T tokens, S sequences, H width of the model,
    N heads, D width of a head.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def linear(self, *parts: Weights, with_gelu: bool = False) -> Projection:
        """Linear layers over the same input as one, their outputs side by side; then GELU."""
        return once(lambda: prepare(*side_by_side(parts), self.dtype, with_gelu=with_gelu))

    def gated(self, layer: Weights, activation: torch.nn.Module | None) -> Projection:
        """A layer whose first half of outputs passes an activation (None: GELU) and is multiplied
        by the other half."""
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
        self, sides_T3ND: torch.Tensor, packing: Packing, window_tokens: int | None, rate: float
    ) -> torch.Tensor:
        """Attention of every token, see `evaluator.packing.attend`; training drops its weights."""
        query_TND, key_TND, value_TND = sides_T3ND.unbind(1)
        return attend(query_TND, key_TND, value_TND, packing, window_tokens)

    def attend_from_first(
        self,
        query_SND: torch.Tensor,
        sides_T2ND: torch.Tensor,
        packing: Packing,
        window_tokens: int | None,
        rate: float,
    ) -> torch.Tensor:
        """The same for each sequence's first token alone."""
        key_TND, value_TND = sides_T2ND.unbind(1)
        return attend_from_first(query_SND, key_TND, value_TND, packing, window_tokens)

    def rotate(
        self, sides_TKND: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], count: int
    ) -> torch.Tensor:
        """Rotary positions for the first `count` of K sides; what came may be overwritten."""
        sides_TKND[:, :count] = rotated(sides_TKND[:, :count], *rotation)
        return sides_TKND

    def drop(self, states: torch.Tensor, rate: float) -> torch.Tensor:
        """Dropout in training: a number is 0 with this probability, else divided by 1 - `rate`."""
        return states

    def add(self, residual: torch.Tensor, states: torch.Tensor, rate: float) -> torch.Tensor:
        """The fp32 residual plus the output of a layer, in training after dropout."""
        return residual + states.float()

    def run(self, layer: Layer, *arguments: object) -> torch.Tensor:
        """Call a layer; training may compute its activations again for the gradient."""
        return layer(*arguments)


def once(build: Callable[[], Projection]) -> Projection:
    """A projection that is built when it is first called: a layer offers more than it uses."""
    built: list[Projection] = []

    def project(states: torch.Tensor) -> torch.Tensor:
        if not built:
            built.append(build())
        return built[0](states)

    return project


def weights(layer: torch.nn.Module) -> Weights:
    """Of a `torch.nn.Linear`."""
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
    """Rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864), computed in fp32, in
    the dtype that came."""
    states = states_TKND.float()
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), -1)
    cosines, sines = cosines_TD[:, None, None], sines_TD[:, None, None]
    return torch.addcmul(states * cosines, turned, sines).to(states_TKND.dtype)
