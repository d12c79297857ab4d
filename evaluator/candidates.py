"""First stages: each judged query's best documents, which every later scorer re-ranks.

BM25 is Lucene's variant by bm25s over title and text, with Snowball stems and stop words. Ties
break as trec_eval breaks them, at the cut too, so that candidates never depend on sorting luck.
Models as first stages are in `evaluator.learned`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evaluator import provenance
from evaluator.analysis import lucene_words, snowball_words
from evaluator.collections import Collection, load_collection, read_texts
from evaluator.files import checked, write_text
from evaluator.measures import evaluate_run, mean
from evaluator.retrieval import best_rows, rank_ids
from evaluator.specs import Bm25Spec, CandidatesSpec, DenseSpec, IrdsSpec, RunSpec, SpladeSpec
from evaluator.trec import (
    Run,
    line_of,
    read_qrels,
    read_run,
    sort_docs,
    write_qrels,
    write_run,
)
from xsweep import ConfigError, DataError


class Candidates(NamedTuple):
    """What a candidates folder holds."""

    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    run: Run


def read_candidates(folder: Path) -> Candidates:
    """A folder that `prepare_candidates` wrote."""
    return Candidates(
        queries=dict(read_texts(folder / "queries.jsonl.gz")),
        qrels=read_qrels(folder / "qrels.txt"),
        run=read_run(folder / "candidates.run.gz"),
    )


def prepare_candidates(
    spec: CandidatesSpec,
    inputs: Mapping[str, Path],
    out: Path,
    report: Callable[..., object] | None = None,
) -> None:
    """Job prepare/candidates: the run of the judged queries, cut at `depth`, and its recall.

    provenance.json has the first stage's settings and the versions of the packages behind it.
    Raises DataError where a given run names documents that the collection does not have.
    """
    origin = provenance.collect(spec.model_dump(mode="json"))
    collection = load_collection(spec.collection)
    queries, qrels = collection.queries, collection.qrels
    judged = {query_id: text for query_id, text in queries.items() if query_id in qrels}
    if not judged:
        raise DataError(f"collection {collection.name!r} has no judged queries")
    order, run, documents = _first_stage(spec, collection, judged, report)
    if not run:
        raise DataError(f"collection {collection.name!r}: the first stage finds nothing at all")
    write_run(out / "candidates.run.gz", run, tag=spec.first_stage.type)
    write_qrels(out / "qrels.txt", {query_id: qrels[query_id] for query_id in judged})
    with write_text(out / "queries.jsonl.gz") as write:
        for query_id, text in judged.items():
            write(json.dumps({"id": query_id, "text": text}, ensure_ascii=False) + "\n")
    recall = f"R@{spec.depth}"
    summary = {
        "queries": len(queries),
        "judged_queries": len(judged),
        "documents": documents,
        "candidates": sum(len(scores) for scores in run.values()),
        "recall": {recall: mean(evaluate_run(qrels, run, [recall])[recall])},
        "order": order,
        "queries_without_candidates": len(judged.keys() - run.keys()),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    provenance.seal(origin, out)


def bm25(
    collection: Collection,
    k1: float = 0.9,
    b: float = 0.4,
    stemmer: str | None = "english",
    depth: int = 1000,
) -> Run:
    """The BM25 run of a collection's queries."""
    settings = Bm25Spec(k1=k1, b=b, stemmer=stemmer)
    return search(list(collection.documents()), collection.queries, settings, depth)


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
    id_rank = rank_ids(doc_ids)
    run: Run = {}
    for query_id, query_words in zip(queries, _words(queries.values(), settings), strict=True):
        scores = index.get_scores_from_ids(index.get_tokens_ids(query_words))
        if len(best := best_rows(scores, id_rank, depth, positive_only=True)):
            run[query_id] = {doc_ids[row]: float(scores[row]) for row in best}
    return run


def _words(texts: Iterable[str], settings: Bm25Spec) -> list[list[str]]:
    if settings.analyzer == "lucene":
        return lucene_words(texts)
    return snowball_words(texts, settings.stemmer)


def _first_stage(
    spec: CandidatesSpec,
    collection: Collection,
    judged: Mapping[str, str],
    report: Callable[..., object] | None,
) -> tuple[str, Run, int]:
    """Which order was taken, the run of the judged queries, the number of documents."""
    stage = spec.first_stage
    if isinstance(stage, Bm25Spec):
        documents = list(collection.documents())
        return "score", search(documents, judged, stage, spec.depth), len(documents)
    if isinstance(stage, DenseSpec | SpladeSpec):
        from evaluator import learned

        run, count = (
            learned.dense(collection, judged, stage, spec.depth, report)
            if isinstance(stage, DenseSpec)
            else learned.splade(collection, judged, stage, spec.depth, report)
        )
        return "score", run, count
    if isinstance(stage, RunSpec):
        order, source = stage.order, stage.file.path
        given = read_run(checked(stage.file), stage.order)
    elif isinstance(spec.collection, IrdsSpec):
        from evaluator import irds

        order, source, given = "score", "scoreddocs", irds.scored_docs(spec.collection)
    else:
        raise ConfigError("scoreddocs come with ir_datasets collections only: use BM25 or a run")
    run = {
        query_id: dict(sort_docs(given[query_id])[: spec.depth])
        for query_id in judged
        if query_id in given
    }
    if not run:
        raise DataError(f"{source}: has none of the judged queries of {collection.name!r}")
    unknown, count = _missing(collection, {doc for scores in run.values() for doc in scores})
    if unknown:
        doc_id = min(unknown)
        place = f"{source}:{line_of(source, doc_id)}" if isinstance(stage, RunSpec) else source
        raise DataError(
            f"{place}: {len(unknown)} of its documents, such as {doc_id!r}, are not in "
            f"collection {collection.name!r}: run and documents must belong together"
        )
    return order, run, count


def _missing(collection: Collection, doc_ids: set[str]) -> tuple[set[str], int]:
    """Which of the documents a collection lacks, and how many it has."""
    if collection.lookup:
        missing = doc_ids - collection.lookup(doc_ids).keys()
        if (known := collection.count()) is not None:
            return missing, known
    missing, count = set(doc_ids), 0
    for doc_id, _ in collection.documents():
        missing.discard(doc_id)
        count += 1
    return missing, count
