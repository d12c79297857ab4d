"""New scores of candidates by one or several models, for `evaluate` and `teach`.

Several lists of candidates may be scored together: the models are loaded once, texts are tokenised
once, and pairs with the same token ids, of whichever collection, are scored once. A long document
may be read in windows; its score is that of its best one (MaxP: Dai and Callan 2019,
doi:10.1145/3331184.3331303). The usual setting is one window, the first tokens.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from xsweep.evaluator.data.files import tree_sha256
from xsweep.evaluator.data.trec import Run, sort_docs
from xsweep.evaluator.device import choose_precision
from xsweep.evaluator.models import bi_encoder
from xsweep.evaluator.models.causal_reranker import PromptEncoder, load_causal_reranker
from xsweep.evaluator.models.cross_encoder import load_cached
from xsweep.evaluator.models.listwise_llm import ask_model, ask_server, rank_lists
from xsweep.evaluator.models.token_store import Sources, TextTokens
from xsweep.evaluator.models.tokenizer import locate
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.scoring import (
    Pairs,
    PartialScores,
    ScoredPairs,
    TokenPair,
    score_on,
    visible_devices,
)
from xsweep.evaluator.specs import ModelSpec, PromptSpec, ScoringSpec, TeacherModelSpec


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
    """`fp32`, `bf16`, or `unknown` where a server computes"""
    precision_reason: str
    answers: dict[str, int] | None = None
    """A listwise LLM's answers and their faults."""

    def figures(self) -> dict[str, Any]:
        """All fields except the run, and the speed, for a summary."""
        speed = self.scored / self.seconds if self.seconds else 0.0
        fields = self._asdict().items()
        rest = {key: value for key, value in fields if key != "run" and value is not None}
        return rest | {"pairs_per_s": round(speed, 2)}


def rerank(
    models: TeacherModelSpec,
    lists: Sequence[ToRerank],
    settings: ScoringSpec,
    report: Callable[..., object] | None = None,
    partial_folders: Sequence[Path] = (),
) -> list[Reranked]:
    """Raw scores of every list's documents; several models give the mean of their scores.

    Bi-encoders run on the first visible GPU, other models on all. These save unfinished scores in
    the first of `partial_folders` and resume from any of them. Raises DataError for an unknown
    document or query.
    """
    devices = visible_devices()
    dtype, reason = choose_precision(settings.precision, devices[0])
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    settings = settings.model_copy(update={"precision": precision})
    if models.listwise:
        model, server = models.models[0], models.listwise.server
        if server:
            precision, reason = "unknown", "the server chooses it"
            ask = ask_server(model.id or "", models.listwise)
        else:
            ask = ask_model(model, models.listwise.prompt, dtype, devices[0])
        texts, started = _texts(lists), time.perf_counter()
        ranked = rank_lists(model, models.listwise, texts, ask, partial_folders, report)
        seconds = time.perf_counter() - started
        return _by_rank(lists, *ranked, seconds, precision, reason)
    scored: list[tuple[ScoredPairs, int]] = []
    for place, model in enumerate(models.models):
        progress = _progress(report, place, len(models.models)) if report else None
        if models.type == "bi_encoder":
            scored.append(_bi_encode(model, lists, settings, devices[0], progress))
            continue
        if models.prompt:
            inputs = _prompts(model, models.prompt, dtype, lists, settings)
        else:
            inputs = _token_pairs(model, lists, settings)
        partial = None
        if partial_folders:
            description = _description(model, models.prompt, settings)
            partial = PartialScores(partial_folders, f"scores-{place}", description)
        scored.append(_score_inputs(inputs, settings, devices, progress, partial))
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


def _description(spec: ModelSpec, prompt: PromptSpec | None, settings: ScoringSpec) -> str:
    """The weights, settings and program that determine the scores of given pairs."""
    folder = Path(locate(spec))
    weights = tree_sha256(folder) if folder.is_dir() else ""
    scoring = settings.model_dump_json(include=set(ScoringSpec.model_fields))
    asked = (prompt.model_dump_json(),) if prompt else ()
    return "\n".join((spec.model_dump_json(), *asked, weights, scoring, torch.__version__))


def _by_rank(
    lists: Sequence[ToRerank],
    orders: Sequence[Sequence[int]],
    answers: dict[str, int],
    seconds: float,
    precision: str,
    precision_reason: str,
) -> list[Reranked]:
    """The lists in the orders that a listwise LLM gave them; a score is the negated rank."""
    left = iter(orders)
    return [
        Reranked(
            run={
                query: {docs[place]: float(-rank) for rank, place in enumerate(next(left), 1)}
                for query, docs in each.candidates.items()
                if docs
            },
            pairs=len(each.pairs),
            scored=sum(map(len, orders)),
            padding_waste=0.0,
            seconds=seconds,
            precision=precision,
            precision_reason=precision_reason,
            answers=answers,
        )
        for each in lists
    ]


def _texts(lists: Sequence[ToRerank]) -> list[tuple[str, list[str]]]:
    """Each query's text, with the texts of its documents."""
    found = []
    for each in lists:
        queries = each.sources.query_texts(each.candidates)
        documents = each.sources.texts(dict.fromkeys(doc for _, doc in each.pairs))
        for query, docs in each.candidates.items():
            if docs:
                found.append((queries[query], [documents[doc] for doc in docs]))
    return found


class Inputs(NamedTuple):
    """A model's distinct inputs for the pairs of all lists."""

    model: PreTrainedModel
    encoder: PairEncoder | PromptEncoder
    unique: Pairs
    rows_W: np.ndarray
    """int64[windows]: the input of each window of a pair"""
    owners_W: np.ndarray
    """int64[windows]: the pair of each window"""
    pairs: int


def _score_inputs(
    inputs: Inputs,
    settings: ScoringSpec,
    devices: Sequence[torch.device],
    progress: Callable[[int, int], None] | None,
    partial: PartialScores | None,
) -> tuple[ScoredPairs, int]:
    """One model's scores of all lists' pairs, and the number of inputs that it read."""
    count = len(inputs.unique)
    result = score_on(
        devices,
        inputs.model,
        inputs.encoder,
        inputs.unique,
        settings,
        progress=(lambda done: progress(done, count)) if progress else None,
        partial=partial,
    )
    scores = best(result.scores[inputs.rows_W], inputs.owners_W, inputs.pairs)
    return result._replace(scores=scores), count


def _token_pairs(spec: ModelSpec, lists: Sequence[ToRerank], settings: ScoringSpec) -> Inputs:
    """A cross-encoder's inputs; documents are cut after the tokens that are read."""
    model, tokenizer = load_cached(spec)
    encoder, tokens = PairEncoder(tokenizer), TextTokens(tokenizer)
    pairs: list[TokenPair] = []
    for each in lists:
        queries = each.sources.query_tokens(tokens, each.candidates, settings.query_tokens)
        documents = each.sources.document_tokens(tokens, each.candidates, settings.read_tokens)
        pairs += [(queries[query], documents[doc]) for query, doc in each.pairs]
    window = settings.document_tokens
    if settings.max_passages > 1:
        # Equal windows for all queries; a single passage gets the room that its own query leaves.
        room = encoder.max_tokens - encoder.overhead_tokens - settings.query_tokens
        window = max(1, min(window, room))
    overlap = min(settings.passage_overlap_tokens, window - 1)
    parts, owners = split(pairs, window, overlap, settings.max_passages)
    unique, rows = _unique(parts, settings.query_tokens, settings.document_tokens)
    return Inputs(model, encoder, unique, rows, owners, len(pairs))


def _prompts(
    spec: ModelSpec,
    prompt: PromptSpec,
    dtype: torch.dtype,
    lists: Sequence[ToRerank],
    settings: ScoringSpec,
) -> Inputs:
    """A causal reranker's inputs: texts, each cut after its tokens."""
    model, tokenizer = load_cached(spec, load_causal_reranker, prompt, dtype)
    counts: dict[str, int] = {}
    places: dict[tuple[str, str], int] = {}
    rows, owners, count = [], [], 0
    cuts = settings.document_tokens, settings.passage_overlap_tokens, settings.max_passages
    for each in lists:
        texts = each.sources.query_texts(each.candidates)
        queries = cut_texts(tokenizer, texts, (settings.query_tokens, 0, 1), counts)
        texts = each.sources.texts(dict.fromkeys(doc for _, doc in each.pairs))
        documents = cut_texts(tokenizer, texts, cuts, counts)
        for owner, (query, doc) in enumerate(each.pairs, count):
            for window in documents[doc]:
                rows.append(places.setdefault((queries[query][0], window), len(places)))
                owners.append(owner)
        count += len(each.pairs)
    encoder = PromptEncoder(tokenizer, prompt, model, counts)
    return Inputs(model, encoder, list(places), np.array(rows), np.array(owners), count)


def cut_texts(
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, str],
    cuts: tuple[int, int, int],
    counts: dict[str, int],
) -> dict[str, list[str]]:
    """The texts of each text's windows (see `windows`), whose numbers of tokens go to `counts`."""
    found: dict[str, list[str]] = {}
    for text_id, text in texts.items():
        places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = np.array(places["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        parts = windows(offsets, *cuts)
        is_whole = len(offsets) <= cuts[0]
        found[text_id] = [text if is_whole else text[part[0, 0] : part[-1, 1]] for part in parts]
        counts.update(zip(found[text_id], map(len, parts), strict=True))
    return found


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
    encoder.model.to(device)
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
