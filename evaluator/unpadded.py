"""Encoders run without padding: the families whose forward pass is written out for packed tokens.

Residuals and normalisations stay in fp32, matrix products run in the dtype asked for. The last
layer computes only what the head reads: the first token of each sequence. Results equal the
model's own on padded batches to 1e-5 in fp32; families that are not here run padded.

Shapes: T tokens of all sequences, S sequences, H width of the model, N heads, D width of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from evaluator.packing import Packing
from evaluator.unpadded_bert import bert_encoder
from evaluator.unpadded_modernbert import modernbert_encoder

Encoder = Callable[[Packing, bool], torch.Tensor]
"""Last hidden states, fp32: [T, H] of all tokens, or with True [S, H] of each first token."""

ENCODERS: dict[str, Callable[[Any, torch.dtype], Encoder]] = {
    "bert": bert_encoder,
    "electra": bert_encoder,
    "roberta": bert_encoder,
    "xlm-roberta": bert_encoder,
    "modernbert": modernbert_encoder,
}
"""By the `model_type` of transformers; DeBERTa's attention needs relative positions."""


def unpadded_encoder(model: PreTrainedModel, dtype: torch.dtype) -> Encoder | None:
    """The encoder of a model on packed tokens; None where its family runs padded only.

    Weights are copied in `dtype`; the model is left as it is.
    """
    config = model.config
    if config.model_type not in ENCODERS or getattr(config, "is_decoder", False):
        return None
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        return None
    return ENCODERS[config.model_type](model.base_model, dtype)


def unpadded_scorer(
    model: PreTrainedModel, dtype: torch.dtype
) -> Callable[[Packing], torch.Tensor] | None:
    """Logits, fp32[S], of a cross-encoder on packed pairs; None where its family runs padded."""
    encoder = unpadded_encoder(model, dtype)
    if encoder is None:
        return None
    head, reads_first = _head(model)

    def score(packing: Packing) -> torch.Tensor:
        return head(encoder(packing, reads_first), packing)[:, 0]

    return score


def _head(model: Any) -> tuple[Callable[[torch.Tensor, Packing], torch.Tensor], bool]:
    """The model's own head on an encoder's states, and whether it reads first tokens only."""
    if model.config.model_type == "modernbert":
        if model.config.classifier_pooling == "mean":
            return lambda states, packing: model.classifier(
                model.head(means(states, packing))
            ), False
        return lambda states, packing: model.classifier(model.head(states)), True
    pooler = getattr(model.base_model, "pooler", None)
    if pooler is None:
        return lambda states, packing: model.classifier(states[:, None]), True
    return lambda states, packing: model.classifier(pooler(states[:, None])), True


def means(states_TH: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Each sequence's mean state, [S, H]."""
    lengths = torch.tensor(packing.lengths, device=states_TH.device)
    return torch.segment_reduce(states_TH, "mean", lengths=lengths, unsafe=True)
