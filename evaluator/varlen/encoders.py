"""Encoders without padding: forward passes of BERT's and ModernBERT's families on packed tokens.

Residuals and normalisations stay in fp32, matrix products run in the dtype asked for. The last
layer computes only what the head reads: the first token of each sequence. Results equal the
model's own on padded batches to 1e-5 in fp32; other families run padded.

Shapes: T tokens of all sequences, S sequences, H width of the model, N heads, D width of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from xsweep.errors import ConfigError
from xsweep.evaluator.specs import UNPADDED_FAMILIES, Layout
from xsweep.evaluator.varlen.attention import Packing
from xsweep.evaluator.varlen.layers import Kernels, Weights, chunks, weights

Encoder = Callable[[Packing, bool], torch.Tensor]
"""Last hidden states, fp32: [T, H] of all tokens, or with True [S, H] of each first token."""
Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of rotary positions, fp32[T, D]."""
Attention = Callable[[torch.Tensor, Packing, bool, Rotation | None], torch.Tensor]
"""Attention of all tokens, [T, H], or with True of each first token, [S, H]."""


def bert_encoder(base: Any, kernels: Kernels) -> Encoder:
    """The encoder of BERT, ELECTRA, RoBERTa or XLM-RoBERTa; `base` is a model without its head."""
    embed = _bert_embeddings(base, kernels)
    layers = [_bert_layer(layer, base.config, kernels) for layer in base.encoder.layer]

    def encode(packing: Packing, first_only: bool) -> torch.Tensor:
        states_TH = embed(packing)
        for layer in layers[:-1]:
            states_TH = kernels.run(layer, states_TH, packing, False)
        return kernels.run(layers[-1], states_TH, packing, first_only)

    return encode


def _bert_embeddings(base: Any, kernels: Kernels) -> Callable[[Packing], torch.Tensor]:
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


def _bert_layer(
    layer: Any, config: Any, kernels: Kernels
) -> Callable[[torch.Tensor, Packing, bool], torch.Tensor]:
    inner, output = layer.attention.self, layer.attention.output
    sides = [weights(side) for side in (inner.query, inner.key, inner.value)]
    attend = _attention(sides, config, kernels, None, config.attention_probs_dropout_prob)
    mix = kernels.linear(weights(output.dense))
    is_gelu = config.hidden_act == "gelu"
    widen = kernels.linear(weights(layer.intermediate.dense), with_gelu=is_gelu)
    activation = None if is_gelu else layer.intermediate.intermediate_act_fn
    narrow = kernels.linear(weights(layer.output.dense))
    rate = config.hidden_dropout_prob

    def forward(states_TH: torch.Tensor, packing: Packing, first_only: bool) -> torch.Tensor:
        mixed_TH = attend(states_TH.to(kernels.dtype), packing, first_only, None)
        if first_only:
            states_TH = states_TH[packing.starts_S]
        states_TH = output.LayerNorm(kernels.add(states_TH, mix(mixed_TH), rate))
        inner_TI = widen(states_TH.to(kernels.dtype))
        if activation is not None:
            inner_TI = activation(inner_TI)
        return layer.output.LayerNorm(kernels.add(states_TH, narrow(inner_TI), rate))

    return forward


def modernbert_encoder(base: Any, kernels: Kernels) -> Encoder:
    """The encoder of ModernBERT or Ettin; `base` is a model without its head."""
    layers = [_modernbert_layer(layer, base.config, kernels) for layer in base.layers]
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


def _modernbert_layer(
    layer: Any, config: Any, kernels: Kernels
) -> Callable[[torch.Tensor, Packing, Rotation, bool], torch.Tensor]:
    is_local = layer.attention_type == "sliding_attention"
    window_tokens = config.sliding_window if is_local else None
    rate = config.attention_dropout
    sides = list(zip(*chunks(weights(layer.attn.Wqkv), 3), strict=True))
    attend = _attention(sides, config, kernels, window_tokens, rate)
    mix = kernels.linear(weights(layer.attn.Wo))
    activation = None if config.hidden_activation == "gelu" else layer.mlp.act
    widen = kernels.gated(weights(layer.mlp.Wi), activation)
    narrow = kernels.linear(weights(layer.mlp.Wo))

    def forward(
        states_TH: torch.Tensor, packing: Packing, rotation: Rotation, first_only: bool
    ) -> torch.Tensor:
        inputs_TH = layer.attn_norm(states_TH).to(kernels.dtype)
        mixed_TH = attend(inputs_TH, packing, first_only, rotation)
        if first_only:
            states_TH = states_TH[packing.starts_S]
        states_TH = kernels.add(states_TH, mix(mixed_TH), rate)
        inner_TI = widen(layer.mlp_norm(states_TH).to(kernels.dtype))
        inner_TI = kernels.drop(inner_TI, config.mlp_dropout)
        return kernels.add(states_TH, narrow(inner_TI), 0.0)

    return forward


def _attention(
    sides: list[Weights], config: Any, kernels: Kernels, window_tokens: int | None, rate: float
) -> Attention:
    """Multi-head attention of a layer with the given query, key and value weights."""
    query, key, value = sides
    to_query, to_key_value = kernels.linear(query), kernels.linear(key, value)
    to_all = kernels.linear(query, key, value)
    heads = config.num_attention_heads

    def attend(
        inputs_TH: torch.Tensor, packing: Packing, first_only: bool, rotation: Rotation | None
    ) -> torch.Tensor:
        project, count = (to_key_value, 2) if first_only else (to_all, 3)
        sides_TKND = project(inputs_TH).unflatten(-1, (count, heads, -1))
        if rotation:
            sides_TKND = kernels.rotate(sides_TKND, rotation, count - 1)
        if not first_only:
            return kernels.attend(None, sides_TKND, packing, window_tokens, rate)
        first_S = packing.starts_S
        query_S1ND = to_query(inputs_TH[first_S]).unflatten(-1, (1, heads, -1))
        if rotation:
            cosines_TD, sines_TD = rotation
            query_S1ND = kernels.rotate(query_S1ND, (cosines_TD[first_S], sines_TD[first_S]), 1)
        return kernels.attend(query_S1ND[:, 0], sides_TKND, packing, window_tokens, rate)

    return attend


ENCODERS: dict[str, Callable[[Any, Kernels], Encoder]] = {
    **dict.fromkeys(UNPADDED_FAMILIES, bert_encoder),
    "modernbert": modernbert_encoder,
}


def has_unpadded(model: PreTrainedModel) -> bool:
    """True if a model's family can run on packed tokens and its weights are fp32."""
    config = model.config
    if config.model_type not in ENCODERS or getattr(config, "is_decoder", False):
        return False
    return all(parameter.dtype == torch.float32 for parameter in model.parameters())


def runs_unpadded(model: PreTrainedModel, layout: Layout) -> bool:
    """True if a model runs on packed tokens; `auto` does so if its family can.

    Raises ConfigError for `unpadded` with a model that runs padded only.
    """
    if layout == "unpadded" and not has_unpadded(model):
        raise ConfigError(f"{model.config.model_type} models run padded only: leave layout out")
    return layout != "padded" and has_unpadded(model)


def build_encoder(model: PreTrainedModel, kernels: Kernels) -> Encoder:
    """The encoder of a model that `has_unpadded`, computed by the given kernels."""
    encode = ENCODERS[model.config.model_type](model.base_model, kernels)
    if model.device.type == "cpu":
        return encode
    return lambda packing, first_only: encode(packing.with_slots(), first_only)


def build_scorer(model: PreTrainedModel, kernels: Kernels) -> Callable[[Packing], torch.Tensor]:
    """Logits, fp32[S], of a cross-encoder that `has_unpadded`, computed by the given kernels."""
    encoder = build_encoder(model, kernels)
    head, reads_first = _head(model)

    def score(packing: Packing) -> torch.Tensor:
        return kernels.head(head, encoder(packing, reads_first), packing)[:, 0]

    return score


def _head(model: Any) -> tuple[Callable[[torch.Tensor, Packing], torch.Tensor], bool]:
    """The model's own head on an encoder's states; True if it reads first tokens only."""
    if model.config.model_type == "modernbert":
        if model.config.classifier_pooling == "mean":
            return lambda states, packing: model.classifier(
                model.drop(model.head(means(states, packing)))
            ), False
        return lambda states, packing: model.classifier(model.drop(model.head(states))), True
    pooler = getattr(model.base_model, "pooler", None)
    if pooler is None:
        return lambda states, packing: model.classifier(states[:, None]), True
    return lambda states, packing: model.classifier(model.dropout(pooler(states[:, None]))), True


def means(states_TH: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Each sequence's mean state, [S, H]."""
    lengths_S = packing.ends.diff().long()
    return torch.segment_reduce(states_TH, "mean", lengths=lengths_S, unsafe=True)
