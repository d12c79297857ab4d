"""The forward pass of BERT, ELECTRA, RoBERTa and XLM-RoBERTa on packed tokens."""

from collections.abc import Callable
from typing import Any

import torch

from evaluator.packing import Packing, attend, attend_from_first
from evaluator.projections import prepare_linear


def bert_encoder(base: Any, dtype: torch.dtype) -> Callable[[Packing, bool], torch.Tensor]:
    """See `evaluator.unpadded.Encoder`; `base` is a model without its head."""
    embed = _embeddings(base)
    layers = [_layer(layer, base.config, dtype) for layer in base.encoder.layer]

    def encode(packing: Packing, first_only: bool) -> torch.Tensor:
        states_TH = embed(packing)
        for layer in layers[:-1]:
            states_TH = layer(states_TH, packing, False)
        return layers[-1](states_TH, packing, first_only)

    return encode


def _embeddings(base: Any) -> Callable[[Packing], torch.Tensor]:
    embeddings = base.embeddings
    positions = embeddings.position_embeddings
    # RoBERTa numbers positions from padding_idx + 1; BERT's table has no padding row.
    first_position = 0 if positions.padding_idx is None else positions.padding_idx + 1

    def embed(packing: Packing) -> torch.Tensor:
        segments_T = packing.segments_T
        if segments_T is None:
            segments_T = torch.zeros_like(packing.ids_T)
        states_TE = embeddings.word_embeddings(packing.ids_T)
        states_TE = states_TE + embeddings.token_type_embeddings(segments_T)
        states_TE += positions(packing.positions_T + first_position)
        states_TE = embeddings.LayerNorm(states_TE)
        project = getattr(base, "embeddings_project", None)
        return states_TE if project is None else project(states_TE)

    return embed


def _layer(
    layer: Any, config: Any, dtype: torch.dtype
) -> Callable[[torch.Tensor, Packing, bool], torch.Tensor]:
    attention, heads = layer.attention, config.num_attention_heads
    query, key, value = (
        prepare_linear(getattr(attention.self, name), dtype) for name in ("query", "key", "value")
    )
    mix = prepare_linear(attention.output.dense, dtype)
    is_gelu = config.hidden_act == "gelu"
    widen = prepare_linear(layer.intermediate.dense, dtype, with_gelu=is_gelu)
    activation = None if is_gelu else layer.intermediate.intermediate_act_fn
    narrow = prepare_linear(layer.output.dense, dtype)

    def forward(states_TH: torch.Tensor, packing: Packing, first_only: bool) -> torch.Tensor:
        inputs_TH = states_TH.to(dtype)
        key_TND, value_TND = (_heads(side(inputs_TH), heads) for side in (key, value))
        if first_only:
            states_TH, inputs_TH = states_TH[packing.starts_S], inputs_TH[packing.starts_S]
        query_TND = _heads(query(inputs_TH), heads)
        attended = attend_from_first if first_only else attend
        mixed_TH = attended(query_TND, key_TND, value_TND, packing)
        states_TH = attention.output.LayerNorm(states_TH + mix(mixed_TH).float())
        inner_TI = widen(states_TH.to(dtype))
        if activation is not None:
            inner_TI = activation(inner_TI)
        return layer.output.LayerNorm(states_TH + narrow(inner_TI).float())

    return forward


def _heads(states_TH: torch.Tensor, heads: int) -> torch.Tensor:
    return states_TH.unflatten(-1, (heads, -1))
