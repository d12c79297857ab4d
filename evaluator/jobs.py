"""Runs one job of this package from its JSON, as a function or as a program.

Job evaluate: re-rank candidates, measure, and leave a run that anyone can check.

Job teach: a model's raw scores over a training set, computed once for every student.
"""

import json
import shutil
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from xsweep.errors import ConfigError
from xsweep.evaluator import provenance
from xsweep.evaluator import scoring as partial
from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.files import write_manifest, write_text
from xsweep.evaluator.data.trec import Run, write_run
from xsweep.evaluator.first_stage import Candidates, read_candidates
from xsweep.evaluator.measures import evaluate_run, mean
from xsweep.evaluator.models.token_store import TokenStore
from xsweep.evaluator.rerank import ResumeState, Sources, ToRerank, rerank
from xsweep.evaluator.specs import (
    CandidatesSpec,
    EvaluateSpec,
    FirstStageScorer,
    ModelScorer,
    ModelSpec,
    PrepareSpec,
    ScoringSpec,
    TeacherModelSpec,
    TeachSpec,
)


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
    from xsweep.evaluator.rerank import ResumeState, Sources, ToRerank, rerank

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
    saving = ResumeState(evaluations[0].out, resume_from)
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
        spec.model, [ToRerank(to_score, sources)], spec, report, ResumeState(out, resume_from)
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


SPECS: dict[str, TypeAdapter] = {
    "prepare": TypeAdapter(PrepareSpec),
    "teach": TypeAdapter(TeachSpec),
    "evaluate": TypeAdapter(EvaluateSpec),
}


def run_job(
    kind: str,
    spec: Mapping[str, Any],
    inputs: Mapping[str, Path | str],
    out: Path,
    report: Callable[..., object] | None = None,
    resume_from: Sequence[Path] = (),
) -> None:
    """Does a job and closes its folder with a manifest.

    `inputs` are the finished folders of other jobs by role; `out` is an empty folder. `report`
    hears (done, total, **figures) and may raise xsweep.Stopped, which is passed on. `teach` and
    `evaluate` go on from the scores that an unfinished attempt at the same job left in `out` or in
    a folder of `resume_from`.

    Raises ConfigError for an unknown kind, a spec that is wrong or an input that is missing.
    """
    if kind not in SPECS:
        raise ConfigError(f"unknown kind of job {kind!r}: use one of {', '.join(SPECS)}")
    try:
        checked = SPECS[kind].validate_python(spec)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'spec'}: {each['msg']}" for each in error.errors()
        )
        raise ConfigError(f"the spec of this {kind} job is wrong: {problems}") from error
    folders = {role: Path(folder) for role, folder in inputs.items()}
    if kind != "prepare" and "candidates" not in folders:
        raise ConfigError(f'a {kind} job needs the input "candidates": a folder that prepare wrote')
    if kind == "prepare" and isinstance(checked, CandidatesSpec):
        from xsweep.evaluator.first_stage import prepare_candidates

        prepare_candidates(checked, folders, out, report)
    elif kind == "prepare":
        from xsweep.evaluator.models.token_store import prepare_tokens

        prepare_tokens(checked, folders, out)
    elif kind == "teach":
        pass

        teach(checked, folders, out, report, resume_from)
    else:
        pass

        evaluate(checked, folders, out, report, resume_from)
    write_manifest(out)
