"""Encoders run without padding: the families whose forward pass is written out for packed tokens.

Residuals and normalisations stay in fp32, matrix products run in the dtype asked for. The last
layer computes only what the head reads: the first token of each sequence. Results equal the
model's own on padded batches to 1e-5 in fp32; families that are not here run padded.

Shapes: T tokens of all sequences, S sequences, H width of the model, N heads, D width of a head.

The forward pass of BERT, ELECTRA, RoBERTa and XLM-RoBERTa on packed tokens.

The forward pass of ModernBERT and Ettin on packed tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from xsweep.evaluator.varlen.attention import Packing
from xsweep.evaluator.varlen.layers import Kernels, chunks, weights


def bert_encoder(base: Any, kernels: Kernels) -> Callable[[Packing, bool], torch.Tensor]:
    """See `xsweep.evaluator.varlen.encoders.Encoder`; `base` is a model without its head."""
    embed = _embeddings(base, kernels)
    layers = [_bert_layer(layer, base.config, kernels) for layer in base.encoder.layer]

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


def _bert_layer(
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


Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, fp32[T, D]."""


def modernbert_encoder(base: Any, kernels: Kernels) -> Callable[[Packing, bool], torch.Tensor]:
    """See `xsweep.evaluator.varlen.encoders.Encoder`; `base` is a model without its head."""
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


Encoder = Callable[[Packing, bool], torch.Tensor]
"""Last hidden states, fp32: [T, H] of all tokens, or with True [S, H] of each first token."""


ENCODERS: dict[str, Callable[[Any, Kernels], Encoder]] = {
    "bert": bert_encoder,
    "electra": bert_encoder,
    "roberta": bert_encoder,
    "xlm-roberta": bert_encoder,
    "modernbert": modernbert_encoder,
}
"""By the `model_type` of transformers; DeBERTa's attention needs relative positions."""


def has_unpadded(model: PreTrainedModel) -> bool:
    """Whether a model's family can run on packed tokens; it must have fp32 weights."""
    config = model.config
    if config.model_type not in ENCODERS or getattr(config, "is_decoder", False):
        return False
    return all(parameter.dtype == torch.float32 for parameter in model.parameters())


def unpadded_encoder(model: PreTrainedModel, dtype: torch.dtype) -> Encoder | None:
    """The encoder of a model on packed tokens, for scoring; None where it runs padded only.

    Weights are copied in `dtype`; the model is left as it is.
    """
    if not has_unpadded(model):
        return None
    return ENCODERS[model.config.model_type](model.base_model, Kernels(dtype))


def unpadded_scorer(
    model: PreTrainedModel, dtype: torch.dtype
) -> Callable[[Packing], torch.Tensor] | None:
    """Logits, fp32[S], of a cross-encoder on packed pairs; None where its family runs padded."""
    return build_scorer(model, Kernels(dtype)) if has_unpadded(model) else None


def build_scorer(model: PreTrainedModel, kernels: Kernels) -> Callable[[Packing], torch.Tensor]:
    """Logits, fp32[S], of a cross-encoder that `has_unpadded`, made of the kernels given."""
    encoder = ENCODERS[model.config.model_type](model.base_model, kernels)
    head, reads_first = _head(model)

    def score(packing: Packing) -> torch.Tensor:
        return head(encoder(packing, reads_first), packing)[:, 0]

    return score


def _head(model: Any) -> tuple[Callable[[torch.Tensor, Packing], torch.Tensor], bool]:
    """The model's own head on an encoder's states, and whether it reads first tokens only."""
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
    lengths = torch.tensor(packing.lengths, device=states_TH.device)
    return torch.segment_reduce(states_TH, "mean", lengths=lengths, unsafe=True)
