"""New scores for candidates by one or several models: what `evaluate` and `teach` share."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from evaluator import bi_encoder
from evaluator.cross_encoder import load_cross_encoder
from evaluator.pairs import PairEncoder
from evaluator.scoring import ScoredPairs, choose_precision, score_pairs
from evaluator.specs import ModelSpec, ScoringSpec, TeacherModelSpec
from evaluator.tokenizers import fingerprint, tokenize
from evaluator.tokens import TokenStore
from evaluator.trec import Run, sort_docs
from xsweep import DataError

log = logging.getLogger(__name__)


class Sources(NamedTuple):
    """Where the texts of queries and documents come from."""

    queries: Mapping[str, str]
    texts: Callable[[Iterable[str]], dict[str, str]]
    """Gives documents' texts by id; asked only for what the token store does not serve."""
    tokens: Path | None = None
    """A token store of the documents, used where the model's tokenizer made it."""


class Reranked(NamedTuple):
    """A run of new scores, best first, and what computing it took."""

    run: Run
    pairs: int
    """Pairs scored, counted once per model."""
    padding_waste: float
    """Share of the computed token slots that were padding, 0 to 1; mean over models."""
    seconds: float
    """Of the scoring itself, without loading and tokenizing."""
    precision: str
    """`fp32` or `bf16`"""
    precision_reason: str

    def figures(self) -> dict[str, float | int | str]:
        """All but the run, and the speed, for a summary."""
        speed = self.pairs / self.seconds if self.seconds else 0.0
        rest = {key: value for key, value in self._asdict().items() if key != "run"}
        return rest | {"pairs_per_s": round(speed, 2)}


def rerank(
    models: TeacherModelSpec,
    candidates: Mapping[str, Sequence[str]],
    sources: Sources,
    settings: ScoringSpec,
    report: Callable[..., object] | None = None,
) -> Reranked:
    """Raw scores of each query's documents; several models give the mean of their scores.

    Runs on the first GPU where there is one. Raises DataError for an unknown document or query.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, reason = choose_precision(settings.precision, device)
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    settings = settings.model_copy(update={"precision": precision})
    pairs = [(query_id, doc_id) for query_id, docs in candidates.items() for doc_id in docs]
    scored: list[ScoredPairs] = []
    for model in models.models:
        before, total = len(scored) * len(pairs), len(models.models) * len(pairs)
        progress = _progress(report, before, total) if report else None
        scored.append(_score(models.type, model, pairs, sources, settings, device, progress))
    means = np.mean([each.scores for each in scored], axis=0, dtype=np.float64)
    scores = np.asarray(means, dtype=np.float32).tolist()
    run: Run = {query_id: {} for query_id, docs in candidates.items() if docs}
    for (query_id, doc_id), score in zip(pairs, scores, strict=True):
        run[query_id][doc_id] = score
    return Reranked(
        run={query_id: dict(sort_docs(docs)) for query_id, docs in run.items()},
        pairs=len(pairs) * len(scored),
        padding_waste=float(np.mean([each.padding_waste for each in scored])),
        seconds=sum(each.seconds for each in scored),
        precision=precision,
        precision_reason=reason,
    )


def _score(
    kind: str,
    spec: ModelSpec,
    pairs: Sequence[tuple[str, str]],
    sources: Sources,
    settings: ScoringSpec,
    device: torch.device,
    progress: Callable[[int], object] | None,
) -> ScoredPairs:
    """One model's scores of the (query id, document id) pairs."""
    if kind == "cross_encoder":
        model, tokenizer = load_cross_encoder(spec)
    else:
        encoder = bi_encoder.load_bi_encoder(spec)
        model, tokenizer = encoder.model, encoder.tokenizer
    model.to(device)  # type: ignore[arg-type]
    queries = _query_tokens(tokenizer, pairs, sources, settings.query_tokens)
    documents = _document_tokens(tokenizer, pairs, sources, settings.document_tokens)
    if kind == "bi_encoder":
        return bi_encoder.score(
            encoder,
            pairs,
            queries,
            documents,
            batch_tokens=settings.batch_tokens,
            precision=settings.precision,
            progress=progress,
        )
    return score_pairs(
        model,
        PairEncoder(tokenizer),
        [(queries[query_id], documents[doc_id]) for query_id, doc_id in pairs],
        query_tokens=settings.query_tokens,
        document_tokens=settings.document_tokens,
        batch_tokens=settings.batch_tokens,
        precision=settings.precision,
        layout=settings.layout,
        progress=progress,
    )


def _query_tokens(
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[str, str]],
    sources: Sources,
    max_tokens: int,
) -> dict[str, np.ndarray]:
    wanted = list(dict.fromkeys(query_id for query_id, _ in pairs))
    if unknown := [query_id for query_id in wanted if query_id not in sources.queries]:
        raise DataError(f"{len(unknown)} queries, such as {unknown[0]!r}, have no text")
    texts = [sources.queries[query_id] for query_id in wanted]
    return dict(zip(wanted, tokenize(tokenizer, texts, max_tokens), strict=True))


def _document_tokens(
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[str, str]],
    sources: Sources,
    max_tokens: int,
) -> Mapping[str, np.ndarray]:
    """From the token store where it fits, else from the documents' texts."""
    wanted = dict.fromkeys(doc_id for _, doc_id in pairs)
    if sources.tokens:
        store = TokenStore(sources.tokens)
        if store.fits(fingerprint(tokenizer), max_tokens):
            return {doc_id: store[doc_id][:max_tokens] for doc_id in wanted}
        log.info("token store %s is of another tokenizer or shorter: not used", sources.tokens)
    texts = sources.texts(wanted)
    return dict(zip(texts, tokenize(tokenizer, list(texts.values()), max_tokens), strict=True))


def _progress(report: Callable[..., object], done_before: int, total: int) -> Callable[[int], None]:
    started = time.perf_counter()

    def progress(done: int) -> None:
        speed = done / (time.perf_counter() - started)
        report(done_before + done, total, pairs_per_s=round(speed, 2))

    return progress
