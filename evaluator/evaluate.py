"""Job evaluate: re-rank candidates, measure, and leave a run that anyone can check."""

import json
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

from evaluator import provenance
from evaluator.candidates import Candidates, read_candidates
from evaluator.collections import load_collection
from evaluator.files import write_text
from evaluator.measures import evaluate_run, mean
from evaluator.specs import (
    EvaluateSpec,
    FirstStageScorer,
    ModelScorer,
    ModelSpec,
    TeacherModelSpec,
)
from evaluator.trec import Run, write_run
from xsweep import ConfigError


def evaluate(
    spec: EvaluateSpec,
    inputs: Mapping[str, Path],
    out: Path,
    report: Callable[..., object] | None = None,
) -> None:
    """Writes run.trec.gz, per_query.json, summary.json and provenance.json to `out`.

    Inputs: `candidates`; optionally `tokens`; `run` (a training's folder) for such a scorer.
    The same job writes the same bytes into the run and the per-query values every time.
    """
    origin = provenance.collect(spec.model_dump(mode="json"))
    candidates = read_candidates(inputs["candidates"])
    first = {
        query_id: dict(islice(scores.items(), spec.depth))
        for query_id, scores in candidates.run.items()
    }
    run, figures = _scored(spec, inputs, candidates, first, report)
    write_run(out / "run.trec.gz", run, tag=spec.scorer.type)
    per_query = evaluate_run(candidates.qrels, run, spec.measures)
    with write_text(out / "per_query.json") as write:
        write(json.dumps(per_query) + "\n")
    summary = {
        "means": {measure: mean(values) for measure, values in per_query.items()},
        "queries": len(candidates.qrels),
        "queries_without_results": len(candidates.qrels.keys() - run.keys()),
        **figures,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    origin |= {"ended": provenance.now(), "precision": figures["precision"]}
    (out / "provenance.json").write_text(json.dumps(origin, indent=1) + "\n")


def _scored(
    spec: EvaluateSpec,
    inputs: Mapping[str, Path],
    candidates: Candidates,
    first: Run,
    report: Callable[..., object] | None,
) -> tuple[Run, dict]:
    """The run to measure and the figures of computing it."""
    if isinstance(spec.scorer, FirstStageScorer):
        figures = {"pairs": 0, "pairs_per_s": 0.0, "padding_waste": 0.0, "seconds": 0.0}
        return first, figures | {"precision": "none", "precision_reason": "nothing is scored"}
    from evaluator.reranking import Sources, rerank

    if isinstance(spec.scorer, ModelScorer):
        models = spec.scorer.model
    elif "run" in inputs:
        trained = ModelSpec(folder=str(inputs["run"] / "model"))
        models = TeacherModelSpec(type="cross_encoder", models=(trained,))
    else:
        raise ConfigError('the scorer "run" needs the input "run": the folder of a training')
    sources = Sources(
        queries=candidates.queries,
        texts=lambda ids: load_collection(spec.collection).document_texts(ids),
        tokens=inputs.get("tokens"),
    )
    result = rerank(models, {key: list(docs) for key, docs in first.items()}, sources, spec, report)
    return result.run, result.figures()
