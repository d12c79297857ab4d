"""First stages: each judged query's best documents, which every later scorer re-ranks.

BM25 is Lucene's variant by bm25s over title and text, with Snowball stems and stop words or with
Lucene's English analysis. Bi-encoders and SPLADE models search exactly: every document is scored
for every query, a chunk at a time, so memory does not grow with the collection. Ties break as in
trec_eval, at the cut too, so candidates never depend on the order of sorting.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xsweep.errors import ConfigError, DataError
from xsweep.evaluator import provenance
from xsweep.evaluator.data import irds, load_collection
from xsweep.evaluator.data.collection import Collection
from xsweep.evaluator.data.files import checked, write_text
from xsweep.evaluator.data.readers import read_texts
from xsweep.evaluator.data.trec import (
    Qrels,
    Run,
    line_of,
    read_qrels,
    read_run,
    sort_docs,
    write_qrels,
    write_run,
)
from xsweep.evaluator.measures import evaluate_run, mean
from xsweep.evaluator.specs import (
    Bm25Spec,
    CandidatesSpec,
    DenseSpec,
    IrdsSpec,
    RunSpec,
    ScoredDocsSpec,
    SpladeSpec,
)

TEXTS_PER_CHUNK = 4096

LUCENE_STOP_WORDS = frozenset(
    [
        *("a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is"),
        *("it", "no", "not", "of", "on", "or", "such", "that", "the", "their", "then", "there"),
        *("these", "they", "this", "to", "was", "will", "with"),
    ]
)
_WORD = re.compile(r"\w+(?:['’.]\w+)*")
"""Unicode's word boundaries as far as they matter in English: `don't` and `3.14` stay whole."""

Report = Callable[..., object]
Score = Callable[[Sequence[str]], np.ndarray]
"""Scores float32[texts, queries] of some documents' texts."""


class Candidates(NamedTuple):
    """The content of a candidates folder."""

    queries: dict[str, str]
    qrels: Qrels
    run: Run


def read_candidates(folder: Path) -> Candidates:
    """Reads a folder that `prepare_candidates` wrote."""
    return Candidates(
        queries=dict(read_texts(folder / "queries.jsonl.gz")),
        qrels=read_qrels(folder / "qrels.txt"),
        run=read_run(folder / "candidates.run.gz"),
    )


def prepare_candidates(spec: CandidatesSpec, out: Path, report: Report | None = None) -> None:
    """Job prepare/candidates: the run of the judged queries, cut at `depth`, and its recall.

    If the collection drops identical ids, a document with its query's id is no candidate. Raises
    DataError if a given run names documents that the collection does not have.
    """
    origin = provenance.collect(spec.model_dump(mode="json"))
    collection = load_collection(spec.collection)
    queries, qrels = collection.queries, collection.qrels
    judged = {query_id: text for query_id, text in queries.items() if query_id in qrels}
    if not judged:
        raise DataError(f"collection {collection.name!r} has no judged queries")
    drops = spec.collection.identical_ids == "drop"
    run, documents = _first_stage(spec, spec.depth + drops, collection, judged, report)
    if drops:
        for query_id, docs in run.items():
            docs.pop(query_id, None)
        cut = {query_id: dict(islice(docs.items(), spec.depth)) for query_id, docs in run.items()}
        run = {query_id: docs for query_id, docs in cut.items() if docs}
    if not run:
        raise DataError(f"collection {collection.name!r}: the first stage finds nothing at all")
    write_run(out / "candidates.run.gz", run, tag=spec.first_stage.type)
    qrels = {query_id: qrels[query_id] for query_id in judged}
    write_qrels(out / "qrels.txt", qrels)
    with write_text(out / "queries.jsonl.gz") as write:
        for query_id, text in judged.items():
            write(json.dumps({"id": query_id, "text": text}, ensure_ascii=False) + "\n")
    recall = f"R@{spec.depth}"
    summary = {
        "queries": len(queries),
        "judged_queries": len(judged),
        "judged_without_text": sorted(collection.qrels.keys() - queries.keys()),
        "documents": documents,
        "candidates": sum(len(scores) for scores in run.values()),
        "recall": {recall: mean(evaluate_run(qrels, run, [recall])[recall])},
        "order": getattr(spec.first_stage, "order", "score"),
        "queries_without_candidates": len(judged.keys() - run.keys()),
    }
    provenance.seal(out, origin, summary)


def _first_stage(
    spec: CandidatesSpec,
    depth: int,
    collection: Collection,
    judged: Mapping[str, str],
    report: Report | None,
) -> tuple[Run, int]:
    """The run of the judged queries and the number of documents."""
    match spec.first_stage:
        case Bm25Spec() as settings:
            documents = list(collection.documents())
            return search(documents, judged, settings, depth), len(documents)
        case DenseSpec() as settings:
            score = _dense(settings, list(judged.values()))
            return retrieve(collection, judged, score, depth, report=report)
        case SpladeSpec() as settings:
            score = _splade(settings, list(judged.values()))
            return retrieve(collection, judged, score, depth, positive_only=True, report=report)
        case RunSpec() as given:
            run, source = read_run(checked(given.file), given.order), given.file.path
        case ScoredDocsSpec():
            if not isinstance(spec.collection, IrdsSpec):
                raise ConfigError(
                    "scoreddocs come with ir_datasets collections only: use BM25 or a run"
                )
            run, source = irds.scored_docs(spec.collection), "scoreddocs"
    run = {
        query_id: dict(sort_docs(run[query_id])[:depth]) for query_id in judged if query_id in run
    }
    if not run:
        raise DataError(f"{source}: has none of the judged queries of {collection.name!r}")
    unknown, count = _unknown(collection, {doc for scores in run.values() for doc in scores})
    if unknown:
        doc_id = min(unknown)
        is_file = isinstance(spec.first_stage, RunSpec)
        place = f"{source}:{line_of(source, doc_id)}" if is_file else source
        raise DataError(
            f"{place}: {len(unknown)} of its documents, such as {doc_id!r}, are not in "
            f"collection {collection.name!r}: run and documents must belong together"
        )
    return run, count


def _unknown(collection: Collection, doc_ids: set[str]) -> tuple[set[str], int]:
    """The documents that a collection does not have, and the number of those that it has."""
    if collection.lookup:
        unknown = doc_ids - collection.lookup(doc_ids).keys()
        if (known := collection.count()) is not None:
            return unknown, known
    unknown, count = set(doc_ids), 0
    for doc_id, _ in collection.documents():
        unknown.discard(doc_id)
        count += 1
    return unknown, count


def search(
    documents: Sequence[tuple[str, str]], queries: Mapping[str, str], settings: Bm25Spec, depth: int
) -> Run:
    """The `depth` best (id, text) documents of each query by BM25.

    Documents that share no word with a query are left out, and queries that find nothing.
    """
    import bm25s

    doc_ids, texts = zip(*documents, strict=True)
    words = _words(texts, settings)
    if not any(words):
        raise DataError("the documents have no words to index")
    index = bm25s.BM25(method="lucene", k1=settings.k1, b=settings.b)
    index.index(words, show_progress=False)
    id_rank = _rank_ids(doc_ids)
    run: Run = {}
    for query_id, query_words in zip(queries, _words(queries.values(), settings), strict=True):
        scores = index.get_scores_from_ids(index.get_tokens_ids(query_words))
        if len(best := _best_rows(scores, id_rank, depth, positive_only=True)):
            run[query_id] = {doc_ids[row]: float(scores[row]) for row in best}
    return run


def _words(texts: Iterable[str], settings: Bm25Spec) -> list[list[str]]:
    if settings.analyzer == "lucene":
        return lucene_words(texts)
    return snowball_words(texts, settings.stemmer)


def snowball_words(texts: Iterable[str], language: str | None) -> list[list[str]]:
    """Words of two letters or more, stemmed, without the language's stop words; None: neither."""
    import bm25s
    import Stemmer

    return bm25s.tokenize(
        list(texts),
        stopwords=language,
        stemmer=Stemmer.Stemmer(language) if language else None,
        return_ids=False,
        show_progress=False,
    )


def lucene_words(texts: Iterable[str]) -> list[list[str]]:
    """Lucene's English analysis, Anserini's default: possessives cut, 33 stop words, Porter stems.

    "The runner's 3.14 U.S. dogs" gives runner, 3.14, u., dog.
    """
    import Stemmer

    stem = Stemmer.Stemmer("porter").stemWords
    analysed = []
    for text in texts:
        words = (word.removesuffix("'s").removesuffix("’s") for word in _WORD.findall(text.lower()))
        analysed.append(stem([word for word in words if word not in LUCENE_STOP_WORDS]))
    return analysed


def _dense(settings: DenseSpec, queries: Sequence[str]) -> Score:
    """Scores by the cosine (or dot product) of embeddings."""
    from xsweep.evaluator.device import choose_precision
    from xsweep.evaluator.models import bi_encoder
    from xsweep.evaluator.models.tokenizer import tokenize
    from xsweep.evaluator.scoring import visible_devices

    encoder = bi_encoder.load_bi_encoder(settings.model)
    device = visible_devices()[0]
    encoder.model.to(device)
    dtype, _ = choose_precision(settings.precision, device)

    def embed(texts: Sequence[str], prefix: str, max_tokens: int) -> np.ndarray:
        ids = tokenize(encoder.tokenizer, [prefix + text for text in texts], max_tokens)
        unit = settings.similarity == "cosine"
        return bi_encoder.embed(encoder, ids, settings.batch_tokens, dtype, unit=unit)[0]

    queries_QH = embed(queries, settings.query_prefix, settings.query_tokens)

    def score(texts: Sequence[str]) -> np.ndarray:
        return embed(texts, settings.document_prefix, settings.document_tokens) @ queries_QH.T

    return score


def _splade(settings: SpladeSpec, queries: Sequence[str]) -> Score:
    """Scores by products of word weights; those of texts without a common word are 0."""
    from xsweep.evaluator.models import splade
    from xsweep.evaluator.scoring import visible_devices

    model = splade.load_splade(settings.model)
    model.model.to(visible_devices()[0])
    encode = partial(
        splade.encode, model, batch_tokens=settings.batch_tokens, precision=settings.precision
    )
    queries_QV = encode(queries, settings.query_tokens)

    def score(texts: Sequence[str]) -> np.ndarray:
        documents_CV = encode(texts, settings.document_tokens)
        return np.asarray((documents_CV @ queries_QV.T).toarray(), dtype=np.float32)

    return score


def retrieve(
    collection: Collection,
    queries: Mapping[str, str],
    score: Score,
    depth: int,
    *,
    positive_only: bool = False,
    report: Report | None = None,
) -> tuple[Run, int]:
    """The `depth` best documents of each query, and the number of documents.

    With `positive_only`, documents that score 0 or less are left out. The collection is read twice:
    ids first, then texts.
    """
    doc_ids = [doc_id for doc_id, _ in collection.documents()]
    if not doc_ids:
        raise DataError(f"collection {collection.name!r} has no documents to retrieve")
    id_rank = _rank_ids(doc_ids)
    kept = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
    texts = (text for _, text in collection.documents())
    for start in range(0, len(doc_ids), TEXTS_PER_CHUNK):
        chunk = list(islice(texts, TEXTS_PER_CHUNK))
        chunk_rank = id_rank[start : start + len(chunk)]
        for place, scores_C in enumerate(np.ascontiguousarray(score(chunk).T)):
            new = _best_rows(scores_C, chunk_rank, depth, positive_only=positive_only)
            rows = np.concatenate((kept[place][0], start + new))
            scores = np.concatenate((kept[place][1], scores_C[new]))
            order = _best_rows(scores, id_rank[rows], depth, positive_only=positive_only)
            kept[place] = rows[order], scores[order]
        if report:
            report(start + len(chunk), len(doc_ids))
    run = {
        query_id: {doc_ids[row]: score for row, score in zip(rows, scores.tolist(), strict=True)}
        for query_id, (rows, scores) in zip(queries, kept, strict=True)
        if len(rows)
    }
    return run, len(doc_ids)


def _rank_ids(doc_ids: Sequence[str]) -> np.ndarray:
    """int64[documents]: each id's place among the sorted ids, so that ties compare numbers."""
    id_rank = np.empty(len(doc_ids), dtype=np.int64)
    id_rank[np.argsort(np.array(doc_ids, dtype=object))] = np.arange(len(doc_ids))
    return id_rank


def _best_rows(
    scores: np.ndarray, id_rank: np.ndarray, depth: int, *, positive_only: bool
) -> np.ndarray:
    """Rows of the `depth` best scores, best first, ties by id descending."""
    rows = np.arange(len(scores))
    if depth < len(scores):
        rows = np.flatnonzero(scores >= np.partition(scores, -depth)[-depth])
    if positive_only:
        rows = rows[scores[rows] > 0]
    return rows[np.lexsort((-id_rank[rows], -scores[rows]))][:depth]
