"""The forward pass of ModernBERT and Ettin on packed tokens."""

from collections.abc import Callable
from typing import Any

import torch

from evaluator.kernels import Kernels, chunks, weights
from evaluator.packing import Packing

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, fp32[T, D]."""


def modernbert_encoder(base: Any, kernels: Kernels) -> Callable[[Packing, bool], torch.Tensor]:
    """See `evaluator.unpadded.Encoder`; `base` is a model without its head."""
    layers = [_layer(layer, base.config, kernels) for layer in base.layers]
    kinds = [layer.attention_type for layer in base.layers]
    embeddings = base.embeddings

    def encode(packing: Packing, first_only: bool) -> torch.Tensor:
        states_TH = embeddings.norm(packing.words(embeddings.tok_embeddings))
        states_TH = kernels.drop(states_TH, base.config.embedding_dropout)
        positions = packing.positions_T[None]
        rotations = {
            kind: tuple(side[0] for side in base.rotary_emb(states_TH, positions, kind))
            for kind in set(kinds)
        }
        for place, (layer, kind) in enumerate(zip(layers, kinds, strict=True), 1):
            is_last = place == len(layers)
            rotation = rotations[kind]
            states_TH = kernels.run(layer, states_TH, packing, rotation, first_only and is_last)
        return base.final_norm(states_TH)

    return encode


def _layer(
    layer: Any, config: Any, kernels: Kernels
) -> Callable[[torch.Tensor, Packing, Rotation, bool], torch.Tensor]:
    sides = list(zip(*chunks(weights(layer.attn.Wqkv), 3), strict=True))
    ask, answer, ask_and_answer = (
        kernels.linear(sides[0]),
        kernels.linear(*sides[1:]),
        kernels.linear(weights(layer.attn.Wqkv)),
    )
    mix = kernels.linear(weights(layer.attn.Wo))
    activation = None if config.hidden_activation == "gelu" else layer.mlp.act
    widen = kernels.gated(weights(layer.mlp.Wi), activation)
    narrow = kernels.linear(weights(layer.mlp.Wo))
    is_local = layer.attention_type == "sliding_attention"
    window_tokens = config.sliding_window if is_local else None
    heads, rate = config.num_attention_heads, config.attention_dropout

    def forward(
        states_TH: torch.Tensor, packing: Packing, rotation: Rotation, first_only: bool
    ) -> torch.Tensor:
        inputs_TH = layer.attn_norm(states_TH).to(kernels.dtype)
        if first_only:
            sides_T2ND = answer(inputs_TH).unflatten(-1, (2, heads, -1))
            sides_T2ND = kernels.rotate(sides_T2ND, rotation, 1)
            first = packing.starts_S
            states_TH, inputs_TH = states_TH[first], inputs_TH[first]
            query_S1ND = ask(inputs_TH).unflatten(-1, (1, heads, -1))
            query_S1ND = kernels.rotate(query_S1ND, (rotation[0][first], rotation[1][first]), 1)
            mixed_TH = kernels.attend_from_first(
                query_S1ND[:, 0], sides_T2ND, packing, window_tokens, rate
            )
        else:
            sides_T3ND = ask_and_answer(inputs_TH).unflatten(-1, (3, heads, -1))
            sides_T3ND = kernels.rotate(sides_T3ND, rotation, 2)
            mixed_TH = kernels.attend(sides_T3ND, packing, window_tokens, rate)
        states_TH = kernels.add(states_TH, mix(mixed_TH), rate)
        inner_TI = widen(layer.mlp_norm(states_TH).to(kernels.dtype))
        inner_TI = kernels.drop(inner_TI, config.mlp_dropout)
        return kernels.add(states_TH, narrow(inner_TI), 0.0)

    return forward
