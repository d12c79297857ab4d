"""The forward pass of ModernBERT and Ettin on packed tokens."""

from collections.abc import Callable
from typing import Any

import torch

from evaluator.packing import Packing, attend, attend_from_first
from evaluator.projections import prepare, prepare_linear

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, fp32[T, 1, D]."""


def modernbert_encoder(base: Any, dtype: torch.dtype) -> Callable[[Packing, bool], torch.Tensor]:
    """See `evaluator.unpadded.Encoder`; `base` is a model without its head."""
    layers = [_layer(layer, base.config, dtype) for layer in base.layers]
    kinds = [layer.attention_type for layer in base.layers]

    def encode(packing: Packing, first_only: bool) -> torch.Tensor:
        states_TH = base.embeddings(packing.ids_T)
        positions = packing.positions_T[None]
        rotations = {
            kind: tuple(side[0, :, None] for side in base.rotary_emb(states_TH, positions, kind))
            for kind in set(kinds)
        }
        for place, (layer, kind) in enumerate(zip(layers, kinds, strict=True), 1):
            is_last = place == len(layers)
            states_TH = layer(states_TH, packing, rotations[kind], first_only and is_last)
        return base.final_norm(states_TH)

    return encode


def _layer(
    layer: Any, config: Any, dtype: torch.dtype
) -> Callable[[torch.Tensor, Packing, Rotation, bool], torch.Tensor]:
    weights, biases = _chunks(layer.attn.Wqkv, 3)
    query, key, value = (
        prepare(weight, bias, dtype) for weight, bias in zip(weights, biases, strict=True)
    )
    mix = prepare_linear(layer.attn.Wo, dtype)
    is_gelu = config.hidden_activation == "gelu"
    (inner, gating), (inner_bias, gating_bias) = _chunks(layer.mlp.Wi, 2)
    widen = prepare(inner, inner_bias, dtype, with_gelu=is_gelu)
    gate = prepare(gating, gating_bias, dtype)
    narrow = prepare_linear(layer.mlp.Wo, dtype)
    is_local = layer.attention_type == "sliding_attention"
    window_tokens = config.sliding_window if is_local else None
    heads = config.num_attention_heads

    def forward(
        states_TH: torch.Tensor, packing: Packing, rotation: Rotation, first_only: bool
    ) -> torch.Tensor:
        inputs_TH = layer.attn_norm(states_TH).to(dtype)
        key_TND, value_TND = (side(inputs_TH).unflatten(-1, (heads, -1)) for side in (key, value))
        key_TND = _rotated(key_TND, rotation)
        if first_only:
            first = packing.starts_S
            states_TH, inputs_TH = states_TH[first], inputs_TH[first]
            rotation = rotation[0][first], rotation[1][first]
        query_TND = _rotated(query(inputs_TH).unflatten(-1, (heads, -1)), rotation)
        attended = attend_from_first if first_only else attend
        mixed_TH = attended(query_TND, key_TND, value_TND, packing, window_tokens)
        states_TH = states_TH + mix(mixed_TH).float()
        inputs_TH = layer.mlp_norm(states_TH).to(dtype)
        inner_TI = widen(inputs_TH)
        if not is_gelu:
            inner_TI = layer.mlp.act(inner_TI)
        return states_TH + narrow(inner_TI.mul_(gate(inputs_TH))).float()

    return forward


def _rotated(states_TND: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotary positions, computed in fp32, in the dtype that came."""
    cosines, sines = rotation
    states = states_TND.float()
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), -1)
    return (states * cosines).addcmul_(turned, sines).to(states_TND.dtype)


def _chunks(
    layer: Any, parts: int
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor | None, ...]]:
    """The parts of a linear layer whose outputs are used apart."""
    biases = (None,) * parts if layer.bias is None else layer.bias.chunk(parts)
    return layer.weight.chunk(parts), biases
