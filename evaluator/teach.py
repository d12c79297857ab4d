"""Job teach: a model's raw scores over a training set, computed once for every student."""

import json
import shutil
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

from evaluator import partial, provenance
from evaluator.candidates import Candidates, read_candidates
from evaluator.collections import load_collection
from evaluator.reranking import Saving, Sources, ToRerank, rerank
from evaluator.specs import TeachSpec
from evaluator.tokens import TokenStore
from evaluator.trec import write_run


def teach(
    spec: TeachSpec,
    inputs: Mapping[str, Path],
    out: Path,
    report: Callable[..., object] | None = None,
    resume_from: Sequence[Path] = (),
) -> None:
    """Writes scores.run.gz: every candidate and every relevant document, missed ones too.

    Inputs: `candidates`; optionally `tokens`. Relevant documents that the collection has no text
    for (a subset of a larger corpus) cannot be scored; the summary counts them.
    """
    origin = provenance.collect(spec.model_dump(mode="json"))
    candidates = read_candidates(inputs["candidates"])
    collection = load_collection(spec.collection)
    missed = _missed(candidates)
    wanted = {doc_id for doc_ids in missed.values() for doc_id in doc_ids}
    known: Container[str] = (
        TokenStore(inputs["tokens"])
        if "tokens" in inputs
        else collection.document_texts(wanted, skip_unknown=True)
    )
    added = {
        query_id: [doc_id for doc_id in doc_ids if doc_id in known]
        for query_id, doc_ids in missed.items()
    }
    to_score = {
        query_id: [*candidates.run.get(query_id, {}), *added[query_id]]
        for query_id in candidates.qrels
    }
    sources = Sources(candidates.queries, collection.document_texts, inputs.get("tokens"))
    (result,) = rerank(
        spec.model, [ToRerank(to_score, sources)], spec, report, Saving(out, resume_from)
    )
    shutil.rmtree(out / partial.FOLDER, ignore_errors=True)
    write_run(out / "scores.run.gz", result.run, tag=spec.model.type)
    summary = {
        "queries": len(result.run),
        "relevant_added": _count(added),
        "relevant_without_text": _count(missed) - _count(added),
        **result.figures(),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    provenance.seal(origin, out, precision=result.precision)


def _missed(candidates: Candidates) -> dict[str, list[str]]:
    """Each query's relevant documents that the first stage did not find."""
    return {
        query_id: [
            doc_id
            for doc_id, grade in grades.items()
            if grade > 0 and doc_id not in candidates.run.get(query_id, {})
        ]
        for query_id, grades in candidates.qrels.items()
    }


def _count(lists: Mapping[str, list[str]]) -> int:
    return sum(map(len, lists.values()))
