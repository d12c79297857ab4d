"""Learned sparse retrieval: a masked language model whose vectors are words with weights.

A text's weight for a word is the maximum over its tokens of log(1 + max(0, logit)), and two texts
score the sum of products (SPLADE-max: Formal et al. 2021, arxiv.org/abs/2109.10086).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from xsweep.errors import DataError
from xsweep.evaluator.device import choose_precision
from xsweep.evaluator.models.bi_encoder import json_file
from xsweep.evaluator.models.cross_encoder import load_model
from xsweep.evaluator.models.files import check_sparse
from xsweep.evaluator.models.tokenizer import locate
from xsweep.evaluator.scoring import batches, require_finite
from xsweep.evaluator.specs import ModelSpec, Precision


class Splade(NamedTuple):
    """A model that turns a text into weights of the vocabulary's words."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def load_splade(spec: ModelSpec) -> Splade:
    """The model with fp32 weights and dropout off.

    Reads transformers' masked language models and sentence-transformers' sparse encoders of one
    transformer and max pooling. Raises DataError if it cannot be loaded, ConfigError for other
    modules.
    """
    check_sparse(locate(spec), partial(json_file, spec))
    model, tokenizer, missing = load_model(AutoModelForMaskedLM, spec)
    if missing:
        raise DataError(
            f"{locate(spec)}: no masked language model, it lacks {missing[0]}: name a SPLADE model"
        )
    return Splade(model, tokenizer)


def encode(
    splade: Splade,
    texts: Sequence[str],
    max_tokens: int,
    *,
    batch_tokens: int = 1024,
    precision: Precision = "fp32",
) -> csr_matrix:
    """Sparse weights float32[texts, vocabulary]; each text is cut to its first `max_tokens`.

    The vocabulary's logits of a batch take 4 * batch_tokens * vocabulary bytes.
    """
    model, tokenizer = splade
    dtype, _ = choose_precision(precision, model.device)
    room = max_tokens + tokenizer.num_special_tokens_to_add()
    longest = min(room, tokenizer.model_max_length)
    encoded = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
    lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    parts = []
    with (
        torch.inference_mode(),
        torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32),
    ):
        for rows in batches(lengths, order, batch_tokens):
            batch = tokenizer.pad(
                {"input_ids": [encoded[row] for row in rows]}, return_tensors="pt"
            ).to(model.device)
            logits_BTV = model(**batch).logits
            hidden_BT = batch["attention_mask"] == 0
            # The maximum commutes with the growing function: one logarithm per word, not token.
            highest_BV = logits_BTV.masked_fill_(hidden_BT[..., None], -torch.inf).amax(1)
            weights_BV = torch.log1p(torch.relu(highest_BV.float()))
            require_finite(weights_BV.cpu().numpy(), "texts", model, rows)
            parts.append(csr_matrix(weights_BV.cpu().numpy()))
    return vstack(parts, format="csr")[np.argsort(order)]
