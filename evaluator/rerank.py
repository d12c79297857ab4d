"""New scores of candidates by one or several models, for `evaluate` and `teach`.

Several lists of candidates may be scored together: the models are loaded once, texts are tokenised
once, and pairs with the same token ids, of whichever collection, are scored once. A long document
may be read in windows; its score is that of its best one (MaxP: Dai and Callan 2019,
doi:10.1145/3331184.3331303). The usual setting is one window, the first tokens.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from xsweep.evaluator.data.files import tree_sha256
from xsweep.evaluator.data.trec import Run, sort_docs
from xsweep.evaluator.models import bi_encoder
from xsweep.evaluator.models.cross_encoder import load_cached
from xsweep.evaluator.models.token_store import Sources, TextTokens
from xsweep.evaluator.models.tokenizer import locate
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.scoring import (
    PartialScores,
    ScoredPairs,
    TokenPair,
    choose_precision,
    score_on,
    visible_devices,
)
from xsweep.evaluator.specs import ModelSpec, ScoringSpec, TeacherModelSpec


class ToRerank(NamedTuple):
    """One list of candidates: each query's documents, and the sources of their texts."""

    candidates: Mapping[str, Sequence[str]]
    sources: Sources

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All (query id, document id)."""
        return [(query, doc) for query, docs in self.candidates.items() for doc in docs]


class Reranked(NamedTuple):
    """A run of new scores, best first, and the cost of computing it."""

    run: Run
    pairs: int
    """Pairs of this run, counted once per model."""
    scored: int
    """Inputs that the models read for all runs of the call; equal pairs are read once."""
    padding_waste: float
    """Share of the computed token slots that were padding, 0 to 1; mean over models."""
    seconds: float
    """Time of the scoring for all runs of the call, without loading and tokenising."""
    precision: str
    """`fp32` or `bf16`"""
    precision_reason: str

    def figures(self) -> dict[str, float | int | str]:
        """All fields except the run, and the speed, for a summary."""
        speed = self.scored / self.seconds if self.seconds else 0.0
        rest = {key: value for key, value in self._asdict().items() if key != "run"}
        return rest | {"pairs_per_s": round(speed, 2)}


def rerank(
    models: TeacherModelSpec,
    lists: Sequence[ToRerank],
    settings: ScoringSpec,
    report: Callable[..., object] | None = None,
    partial_folders: Sequence[Path] = (),
) -> list[Reranked]:
    """Raw scores of every list's documents; several models give the mean of their scores.

    Cross-encoders run on all visible GPUs, bi-encoders on the first. Cross-encoders save
    unfinished scores in the first of `partial_folders` and resume from any of them. Raises
    DataError for an unknown document or query.
    """
    devices = visible_devices()
    dtype, reason = choose_precision(settings.precision, devices[0])
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    settings = settings.model_copy(update={"precision": precision})
    scored: list[tuple[ScoredPairs, int]] = []
    for place, model in enumerate(models.models):
        progress = _progress(report, place, len(models.models)) if report else None
        if models.type == "cross_encoder":
            partial = None
            if partial_folders:
                description = _description(model, settings)
                partial = PartialScores(partial_folders, f"scores-{place}", description)
            scored.append(_cross_encode(model, lists, settings, devices, progress, partial))
        else:
            scored.append(_bi_encode(model, lists, settings, devices[0], progress))
    means = np.mean([each.scores for each, _ in scored], axis=0, dtype=np.float64)
    scores = iter(np.asarray(means, dtype=np.float32).tolist())
    waste = float(np.mean([each.padding_waste for each, _ in scored]))
    results = []
    for each in lists:
        run: Run = {query: {} for query, docs in each.candidates.items() if docs}
        for query, doc in each.pairs:
            run[query][doc] = next(scores)
        results.append(
            Reranked(
                run={query: dict(sort_docs(docs)) for query, docs in run.items()},
                pairs=len(each.pairs) * len(scored),
                scored=sum(count for _, count in scored),
                padding_waste=waste,
                seconds=sum(each.seconds for each, _ in scored),
                precision=precision,
                precision_reason=reason,
            )
        )
    return results


def _progress(
    report: Callable[..., object], models_before: int, models: int
) -> Callable[[int, int], None]:
    started = time.perf_counter()

    def progress(done: int, total: int) -> None:
        speed = done / (time.perf_counter() - started)
        report(models_before * total + done, models * total, pairs_per_s=round(speed, 2))

    return progress


def _description(spec: ModelSpec, settings: ScoringSpec) -> str:
    """The weights, settings and program that determine the scores of given token ids."""
    folder = Path(locate(spec))
    weights = tree_sha256(folder) if folder.is_dir() else ""
    scoring = settings.model_dump_json(include=set(ScoringSpec.model_fields))
    return "\n".join((spec.model_dump_json(), weights, scoring, torch.__version__))


def _cross_encode(
    spec: ModelSpec,
    lists: Sequence[ToRerank],
    settings: ScoringSpec,
    devices: Sequence[torch.device],
    progress: Callable[[int, int], None] | None,
    partial: PartialScores | None,
) -> tuple[ScoredPairs, int]:
    """One cross-encoder's scores of all lists' pairs, and the number of inputs that it read."""
    model, tokenizer = load_cached(spec)
    encoder = PairEncoder(tokenizer)
    pairs = _token_pairs(tokenizer, lists, settings)
    window = settings.document_tokens
    if settings.max_passages > 1:
        # Equal windows for all queries; a single passage gets the room that its own query leaves.
        room = encoder.max_tokens - encoder.overhead_tokens - settings.query_tokens
        window = max(1, min(window, room))
    overlap = min(settings.passage_overlap_tokens, window - 1)
    parts, owners = split(pairs, window, overlap, settings.max_passages)
    unique, rows = _unique(parts, settings.query_tokens, settings.document_tokens)
    result = score_on(
        devices,
        model,
        encoder,
        unique,
        settings,
        progress=(lambda done: progress(done, len(unique))) if progress else None,
        partial=partial,
    )
    scores = best(result.scores[rows], owners, len(pairs))
    return result._replace(scores=scores), len(unique)


def _token_pairs(
    tokenizer: PreTrainedTokenizerFast, lists: Sequence[ToRerank], settings: ScoringSpec
) -> list[TokenPair]:
    """Token ids of all lists' pairs; documents are cut after the tokens that are read."""
    tokens = TextTokens(tokenizer)
    pairs: list[TokenPair] = []
    for each in lists:
        queries = each.sources.query_tokens(tokens, each.candidates, settings.query_tokens)
        documents = each.sources.document_tokens(tokens, each.candidates, settings.read_tokens)
        pairs += [(queries[query], documents[doc]) for query, doc in each.pairs]
    return pairs


def windows(
    document_ids: np.ndarray, window_tokens: int, overlap_tokens: int, most: int
) -> list[np.ndarray]:
    """The first `most` windows of a document; the last one ends where the document ends.

    Ten tokens in windows of 4 that overlap by 1 are 0-3, 3-6, 6-9.
    """
    step = window_tokens - overlap_tokens
    starts = range(0, max(1, len(document_ids) - overlap_tokens), step)
    return [document_ids[start : start + window_tokens] for start in starts[:most]]


def split(
    pairs: Sequence[TokenPair], window_tokens: int, overlap_tokens: int, most: int
) -> tuple[list[TokenPair], np.ndarray]:
    """Pairs of query and window, and int64[windows]: the pair that each one belongs to."""
    parts = [
        (query, window, row)
        for row, (query, document) in enumerate(pairs)
        for window in windows(document, window_tokens, overlap_tokens, most)
    ]
    owners = np.array([row for _, _, row in parts], dtype=np.int64)
    return [(query, window) for query, window, _ in parts], owners


def best(scores: np.ndarray, owners: np.ndarray, count: int) -> np.ndarray:
    """float32[count]: the best score of each pair's windows."""
    highest = np.full(count, -np.inf, dtype=np.float32)
    np.maximum.at(highest, owners, scores)
    return highest


def _unique(
    pairs: Sequence[TokenPair], query_tokens: int, document_tokens: int
) -> tuple[list[TokenPair], np.ndarray]:
    """Every pair of cut token ids once, and int64[pairs]: the place of each one among them."""
    places: dict[tuple[bytes, bytes], int] = {}
    unique: list[TokenPair] = []
    rows = np.empty(len(pairs), dtype=np.int64)
    for row, (query, document) in enumerate(pairs):
        cut = query[:query_tokens], document[:document_tokens]
        query_key, document_key = (np.asarray(ids, dtype=np.int32).tobytes() for ids in cut)
        rows[row] = places.setdefault((query_key, document_key), len(unique))
        if rows[row] == len(unique):
            unique.append(cut)
    return unique, rows


def _bi_encode(
    spec: ModelSpec,
    lists: Sequence[ToRerank],
    settings: ScoringSpec,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> tuple[ScoredPairs, int]:
    """One bi-encoder's cosines of all lists' pairs, and the number of pairs."""
    encoder = bi_encoder.load_bi_encoder(spec)
    encoder.model.to(device)  # type: ignore[arg-type]
    total = sum(len(each.pairs) for each in lists)
    tokens = TextTokens(encoder.tokenizer)
    results: list[ScoredPairs] = []
    for each in lists:
        before = sum(len(result.scores) for result in results)

        def report(done: int, before: int = before) -> None:
            if progress:
                progress(before + done, total)

        results.append(
            bi_encoder.score(
                encoder,
                each.pairs,
                each.sources.query_tokens(tokens, each.candidates, settings.query_tokens),
                each.sources.document_tokens(tokens, each.candidates, settings.document_tokens),
                settings,
                progress=report,
            )
        )
    scores = np.concatenate([result.scores for result in results])
    waste = float(np.mean([result.padding_waste for result in results]))
    return ScoredPairs(scores, waste, sum(result.seconds for result in results)), total
