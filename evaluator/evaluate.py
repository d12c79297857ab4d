"""Job evaluate: re-rank candidates, measure, and leave a run that anyone can check."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from evaluator import partial, provenance
from evaluator.candidates import Candidates, read_candidates
from evaluator.collections import load_collection
from evaluator.files import write_text
from evaluator.measures import evaluate_run, mean
from evaluator.specs import (
    EvaluateSpec,
    FirstStageScorer,
    ModelScorer,
    ModelSpec,
    ScoringSpec,
    TeacherModelSpec,
)
from evaluator.trec import Run, write_run
from xsweep import ConfigError


class Evaluation(NamedTuple):
    """One evaluation: its spec, its input folders by role and its own folder."""

    spec: EvaluateSpec
    inputs: Mapping[str, Path]
    """`candidates`; optionally `tokens`; `run` (a training's folder) for such a scorer."""
    out: Path


def evaluate(
    spec: EvaluateSpec,
    inputs: Mapping[str, Path],
    out: Path,
    report: Callable[..., object] | None = None,
    resume_from: Sequence[Path] = (),
) -> None:
    """Writes run.trec.gz, per_query.json, summary.json and provenance.json to `out`.

    The same job writes the same bytes into the run and the per-query values every time, also when
    it goes on from what an earlier attempt at it left in `out` or in a folder of `resume_from`.
    """
    evaluate_together([Evaluation(spec, inputs, out)], report, resume_from)


def evaluate_together(
    evaluations: Sequence[Evaluation],
    report: Callable[..., object] | None = None,
    resume_from: Sequence[Path] = (),
) -> None:
    """Evaluations of one model on several collections: pairs that they share are scored once.

    Raises ConfigError where they differ in the scorer or in how pairs are scored.
    """
    started = provenance.now()
    candidates = [read_candidates(each.inputs["candidates"]) for each in evaluations]
    first = [
        {
            query_id: dict(islice(scores.items(), each.spec.depth))
            for query_id, scores in held.run.items()
        }
        for each, held in zip(evaluations, candidates, strict=True)
    ]
    scored = _scored(evaluations, candidates, first, report, resume_from)
    for each, held, before, (run, figures) in zip(
        evaluations, candidates, first, scored, strict=True
    ):
        _write(each, held, before, run, figures, started)
        shutil.rmtree(each.out / partial.FOLDER, ignore_errors=True)


def _write(
    evaluation: Evaluation,
    candidates: Candidates,
    first: Run,
    run: Run,
    figures: dict,
    started: str,
) -> None:
    spec, out = evaluation.spec, evaluation.out
    origin = provenance.collect(spec.model_dump(mode="json")) | {"started": started}
    write_run(out / "run.trec.gz", run, tag=spec.scorer.type)
    per_query = evaluate_run(candidates.qrels, run, spec.measures)
    with write_text(out / "per_query.json") as write:
        write(json.dumps(per_query) + "\n")
    depth = max((len(docs) for docs in first.values()), default=0)
    recall = f"R@{spec.depth or max(1, depth)}"
    summary = {
        "means": {measure: mean(values) for measure, values in per_query.items()},
        "queries": len(candidates.qrels),
        "queries_without_results": len(candidates.qrels.keys() - run.keys()),
        "recall": {recall: mean(evaluate_run(candidates.qrels, first, [recall])[recall])},
        **figures,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    provenance.seal(origin, out, precision=figures["precision"])


def _scored(
    evaluations: Sequence[Evaluation],
    candidates: Sequence[Candidates],
    first: Sequence[Run],
    report: Callable[..., object] | None,
    resume_from: Sequence[Path],
) -> list[tuple[Run, dict]]:
    """The runs to measure and the figures of computing them."""
    spec = evaluations[0].spec
    if isinstance(spec.scorer, FirstStageScorer):
        figures: dict = {"pairs": 0, "pairs_per_s": 0.0, "padding_waste": 0.0, "seconds": 0.0}
        figures |= {"precision": "none", "precision_reason": "nothing is scored"}
        return [(run, figures) for run in first]
    from evaluator.reranking import Saving, Sources, ToRerank, rerank

    if any(_way(each) != _way(evaluations[0]) for each in evaluations):
        raise ConfigError("evaluations that share their scoring must agree on model and settings")
    lists = [
        ToRerank(
            {query_id: list(docs) for query_id, docs in run.items()},
            Sources(
                queries=held.queries,
                texts=_texts_of(each.spec),
                tokens=each.inputs.get("tokens"),
            ),
        )
        for each, held, run in zip(evaluations, candidates, first, strict=True)
    ]
    saving = Saving(evaluations[0].out, resume_from)
    results = rerank(_models(evaluations[0]), lists, spec, report, saving)
    return [(result.run, result.figures()) for result in results]


def _texts_of(spec: EvaluateSpec) -> Callable:
    return lambda ids: load_collection(spec.collection).document_texts(ids)


def _models(evaluation: Evaluation) -> TeacherModelSpec:
    scorer, inputs = evaluation.spec.scorer, evaluation.inputs
    if isinstance(scorer, ModelScorer):
        return scorer.model
    if "run" not in inputs:
        raise ConfigError('the scorer "run" needs the input "run": the folder of a training')
    trained = ModelSpec(folder=str(inputs["run"] / "model"))
    return TeacherModelSpec(type="cross_encoder", models=(trained,))


def _way(evaluation: Evaluation) -> tuple:
    """All that decides the score of a pair."""
    scoring = evaluation.spec.model_dump(include=set(ScoringSpec.model_fields))
    return evaluation.spec.scorer, evaluation.inputs.get("run"), scoring
