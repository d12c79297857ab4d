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

from evaluator.kernels import Kernels
from evaluator.packing import Packing
from evaluator.unpadded_bert import bert_encoder
from evaluator.unpadded_modernbert import modernbert_encoder

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
