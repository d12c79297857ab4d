"""The forward pass of BERT, ELECTRA, RoBERTa and XLM-RoBERTa on packed tokens."""

from collections.abc import Callable
from typing import Any

import torch

from evaluator.kernels import Kernels, weights
from evaluator.packing import Packing


def bert_encoder(base: Any, kernels: Kernels) -> Callable[[Packing, bool], torch.Tensor]:
    """See `evaluator.unpadded.Encoder`; `base` is a model without its head."""
    embed = _embeddings(base, kernels)
    layers = [_layer(layer, base.config, kernels) for layer in base.encoder.layer]

    def encode(packing: Packing, first_only: bool) -> torch.Tensor:
        states_TH = embed(packing)
        for layer in layers[:-1]:
            states_TH = kernels.run(layer, states_TH, packing, False)
        return kernels.run(layers[-1], states_TH, packing, first_only)

    return encode


def _embeddings(base: Any, kernels: Kernels) -> Callable[[Packing], torch.Tensor]:
    embeddings = base.embeddings
    positions = embeddings.position_embeddings
    # RoBERTa numbers positions from padding_idx + 1; BERT's table has no padding row.
    first_position = 0 if positions.padding_idx is None else positions.padding_idx + 1
    rate = base.config.hidden_dropout_prob

    def embed(packing: Packing) -> torch.Tensor:
        segments_T = packing.segments_T
        if segments_T is None:
            segments_T = torch.zeros_like(packing.ids_T)
        states_TE = packing.words(embeddings.word_embeddings)
        states_TE = states_TE + embeddings.token_type_embeddings(segments_T)
        states_TE += positions(packing.positions_T + first_position)
        states_TE = kernels.drop(embeddings.LayerNorm(states_TE), rate)
        project = getattr(base, "embeddings_project", None)
        return states_TE if project is None else project(states_TE)

    return embed


def _layer(
    layer: Any, config: Any, kernels: Kernels
) -> Callable[[torch.Tensor, Packing, bool], torch.Tensor]:
    attention, heads = layer.attention, config.num_attention_heads
    query, key, value = (
        weights(getattr(attention.self, name)) for name in ("query", "key", "value")
    )
    ask, ask_and_answer = kernels.linear(query), kernels.linear(query, key, value)
    answer = kernels.linear(key, value)
    mix = kernels.linear(weights(attention.output.dense))
    is_gelu = config.hidden_act == "gelu"
    widen = kernels.linear(weights(layer.intermediate.dense), with_gelu=is_gelu)
    activation = None if is_gelu else layer.intermediate.intermediate_act_fn
    narrow = kernels.linear(weights(layer.output.dense))
    hidden_rate, weights_rate = config.hidden_dropout_prob, config.attention_probs_dropout_prob

    def forward(states_TH: torch.Tensor, packing: Packing, first_only: bool) -> torch.Tensor:
        inputs_TH = states_TH.to(kernels.dtype)
        if first_only:
            sides_T2ND = answer(inputs_TH).unflatten(-1, (2, heads, -1))
            states_TH, inputs_TH = states_TH[packing.starts_S], inputs_TH[packing.starts_S]
            query_SND = ask(inputs_TH).unflatten(-1, (heads, -1))
            mixed_TH = kernels.attend_from_first(query_SND, sides_T2ND, packing, None, weights_rate)
        else:
            sides_T3ND = ask_and_answer(inputs_TH).unflatten(-1, (3, heads, -1))
            mixed_TH = kernels.attend(sides_T3ND, packing, None, weights_rate)
        states_TH = kernels.add(states_TH, mix(mixed_TH), hidden_rate)
        states_TH = attention.output.LayerNorm(states_TH)
        inner_TI = widen(states_TH.to(kernels.dtype))
        if activation is not None:
            inner_TI = activation(inner_TI)
        return layer.output.LayerNorm(kernels.add(states_TH, narrow(inner_TI), hidden_rate))

    return forward
