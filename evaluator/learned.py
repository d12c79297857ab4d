"""First stages that are models: dense vectors of a bi-encoder, sparse ones of a SPLADE model."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from evaluator.collections import Collection
from evaluator.retrieval import retrieve
from evaluator.specs import DenseSpec, SpladeSpec
from evaluator.trec import Run


def dense(
    collection: Collection,
    queries: Mapping[str, str],
    settings: DenseSpec,
    depth: int,
    report: Callable[..., object] | None = None,
) -> tuple[Run, int]:
    """The best documents by the cosine (or dot product) of embeddings, and how many there are."""
    from evaluator import bi_encoder
    from evaluator.scoring import choose_precision
    from evaluator.tokenizers import tokenize

    encoder = bi_encoder.load_bi_encoder(settings.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder.model.to(device)  # type: ignore[arg-type]
    dtype, _ = choose_precision(settings.precision, device)

    def embed(texts: Sequence[str], prefix: str, max_tokens: int) -> np.ndarray:
        ids = tokenize(encoder.tokenizer, [prefix + text for text in texts], max_tokens)
        unit = settings.similarity == "cosine"
        return bi_encoder.embed(encoder, ids, settings.batch_tokens, dtype, unit=unit)[0]

    queries_QH = embed(list(queries.values()), settings.query_prefix, settings.query_tokens)

    def score(texts: Sequence[str]) -> np.ndarray:
        return embed(texts, settings.document_prefix, settings.document_tokens) @ queries_QH.T

    return retrieve(collection, queries, score, depth, report=report)


def splade(
    collection: Collection,
    queries: Mapping[str, str],
    settings: SpladeSpec,
    depth: int,
    report: Callable[..., object] | None = None,
) -> tuple[Run, int]:
    """The best documents by the products of word weights, and how many there are.

    Documents that share no word with a query are left out.
    """
    from evaluator.splade import encode, load_splade

    model = load_splade(settings.model)
    model.model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    weigh = partial(encode, model, batch_tokens=settings.batch_tokens, precision=settings.precision)
    queries_QV = weigh(list(queries.values()), settings.query_tokens)

    def score(texts: Sequence[str]) -> np.ndarray:
        documents_CV = weigh(texts, settings.document_tokens)
        return np.asarray((documents_CV @ queries_QV.T).toarray(), dtype=np.float32)

    return retrieve(collection, queries, score, depth, positive_only=True, report=report)
