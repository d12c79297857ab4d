"""Bi-encoders, as teachers and as first stages: the cosine of a query's and a document's embedding.

Pooling follows the folder's `modules.json` (sentence-transformers' layout), else it is the mean.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import cached_file

from xsweep.evaluator.device import choose_precision
from xsweep.evaluator.models.cross_encoder import load_model
from xsweep.evaluator.models.files import pooling
from xsweep.evaluator.models.tokenizer import locate, special_tokens
from xsweep.evaluator.pairs import PairIds
from xsweep.evaluator.scoring import (
    ScoredPairs,
    batches,
    batches_without_padding,
    require_finite,
)
from xsweep.evaluator.specs import ModelSpec, ScoringSpec
from xsweep.evaluator.varlen.attention import pack
from xsweep.evaluator.varlen.encoders import Encoder, build_encoder, means, runs_unpadded
from xsweep.evaluator.varlen.layers import Kernels

PAIRS_PER_PRODUCT = 65_536


class BiEncoder(NamedTuple):
    """A model that embeds one text at a time."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    pooling: str
    """`mean` or `cls`"""


def load_bi_encoder(spec: ModelSpec) -> BiEncoder:
    """The encoder with fp32 weights and dropout off. Raises DataError if it cannot be loaded."""
    model, tokenizer, _ = load_model(AutoModel, spec)
    return BiEncoder(model, tokenizer, pooling(locate(spec), partial(json_file, spec)))


def json_file(spec: ModelSpec, name: str) -> Any:
    """A JSON file of the model, local or from the hub; None if it has none."""
    path = cached_file(
        locate(spec),
        name,
        revision=spec.revision or "main",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return json.loads(Path(path).read_text()) if path else None


def score(
    encoder: BiEncoder,
    pairs: Sequence[tuple[str, str]],
    queries: Mapping[str, np.ndarray],
    documents: Mapping[str, np.ndarray],
    settings: ScoringSpec,
    progress: Callable[[int], object] | None = None,
) -> ScoredPairs:
    """Cosines, -1 to 1, of (query id, document id) pairs; every text is embedded once.

    `queries` and `documents` give token ids, cut and without special tokens; `settings` gives
    budget and precision. `progress` gets the number of pairs whose share of the embedding is done.
    """
    started = time.perf_counter()
    dtype, _ = choose_precision(settings.precision, encoder.model.device)
    texts = [*queries.values(), *documents.values()]

    def report(done: int) -> None:
        if progress:
            progress(done * len(pairs) // len(texts))

    embeddings, waste = embed(encoder, texts, settings.batch_tokens, dtype, report)
    rows = {("q", key): row for row, key in enumerate(queries)}
    rows |= {("d", key): row for row, key in enumerate(documents, len(queries))}
    query_rows = [rows["q", query_id] for query_id, _ in pairs]
    doc_rows = [rows["d", doc_id] for _, doc_id in pairs]
    scores = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), PAIRS_PER_PRODUCT):
        part = slice(start, start + PAIRS_PER_PRODUCT)
        np.einsum(
            "nh,nh->n", embeddings[query_rows[part]], embeddings[doc_rows[part]], out=scores[part]
        )
    return ScoredPairs(scores, waste, time.perf_counter() - started)


def embed(
    encoder: BiEncoder,
    texts: Sequence[np.ndarray],
    batch_tokens: int,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], object] = lambda done: None,
    unit: bool = True,
) -> tuple[np.ndarray, float]:
    """Vectors float32[texts, width] of token ids, and the share of padding computed.

    `unit` scales them to length 1. On a CPU texts are not padded if the family allows it. Raises
    DivergenceError for a vector that is not finite.
    """
    model, tokenizer = encoder.model, encoder.tokenizer
    prefix, suffix = special_tokens(tokenizer)
    room = tokenizer.model_max_length - len(prefix) - len(suffix)
    inputs = [np.concatenate((prefix, ids[:room], suffix)) for ids in texts]
    lengths = np.array([len(ids) for ids in inputs], dtype=np.int64)
    embeddings = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    slots = done = 0
    with torch.inference_mode():
        is_unpadded = runs_unpadded(model, "auto")
        unpadded = build_encoder(model, Kernels(dtype)) if is_unpadded else None
        cut = batches_without_padding if unpadded else batches
        for rows in cut(lengths, np.argsort(-lengths, kind="stable"), batch_tokens):
            batch = [inputs[row] for row in rows]
            if unpadded:
                pooled_BH = _pooled_unpadded(encoder.pooling, unpadded, batch)
                used = int(lengths[rows].sum())
            else:
                pooled_BH, used = _pooled_padded(encoder, batch, dtype)
            if unit:
                pooled_BH = torch.nn.functional.normalize(pooled_BH, dim=-1)
            embeddings[rows] = pooled_BH.cpu().numpy()
            require_finite(embeddings[rows], "texts", model, rows)
            slots += used
            done += len(rows)
            progress(done)
    return embeddings, 1 - int(lengths.sum()) / slots


def _pooled_unpadded(pooling: str, encode: Encoder, inputs: Sequence[np.ndarray]) -> torch.Tensor:
    packing = pack([PairIds(ids, None) for ids in inputs])
    states = encode(packing, pooling == "cls")
    return states if pooling == "cls" else means(states, packing)


def _pooled_padded(
    encoder: BiEncoder, inputs: Sequence[np.ndarray], dtype: torch.dtype
) -> tuple[torch.Tensor, int]:
    model = encoder.model
    lengths_B = torch.tensor([len(ids) for ids in inputs], device=model.device)
    ids_BT = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(ids) for ids in inputs],
        batch_first=True,
        padding_value=encoder.tokenizer.pad_token_id or 0,
    ).to(model.device)
    places_T = torch.arange(ids_BT.shape[1], device=model.device)
    mask_BT = (places_T < lengths_B[:, None]).long()
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        states_BTH = model(ids_BT, mask_BT).last_hidden_state.float()
    if encoder.pooling == "cls":
        return states_BTH[:, 0], ids_BT.numel()
    sums_BH = (states_BTH * mask_BT[..., None]).sum(1)
    return sums_BH / mask_BT.sum(1, keepdim=True), ids_BT.numel()
