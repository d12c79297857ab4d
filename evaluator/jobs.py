"""Runs one job of this package from its JSON: `prepare`, `teach` or `evaluate`.

Modules that load transformers are imported by the jobs that need a model: it takes seconds.
"""

import json
import shutil
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from xsweep.errors import ConfigError, field_errors
from xsweep.evaluator import provenance
from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.files import write_manifest, write_text
from xsweep.evaluator.data.trec import Run, write_run
from xsweep.evaluator.first_stage import Candidates, prepare_candidates, read_candidates
from xsweep.evaluator.measures import evaluate_run, mean
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
    TokensSpec,
)

PARTIAL_FOLDER = "partial"
"""Folder of unfinished scores in a job's folder."""

Report = Callable[..., object]
"""Called with (done, total, **figures); it may raise xsweep.Stopped, which ends the job."""

SPECS: dict[str, TypeAdapter] = {
    "prepare": TypeAdapter(PrepareSpec),
    "teach": TypeAdapter(TeachSpec),
    "evaluate": TypeAdapter(EvaluateSpec),
}


def read_job(source: Path) -> dict[str, Any]:
    """The job in a JSON file: its kind and spec, and its inputs by role.

    Raises ConfigError if it is not one.
    """
    try:
        job = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{source}: not JSON: {error}") from error
    if not isinstance(job, dict) or not {"kind", "spec"} <= job.keys():
        raise ConfigError(f'{source}: expected an object with "kind", "spec" and "inputs"')
    return {"inputs": {}} | job


def run_job(
    kind: str,
    spec: Mapping[str, Any],
    inputs: Mapping[str, Path | str],
    out: Path,
    report: Report | None = None,
    resume_from: Sequence[Path] = (),
) -> None:
    """Runs a job and closes its folder with a manifest.

    `inputs` are the finished folders of other jobs by role; `out` is an empty folder. `teach` and
    `evaluate` resume from the scores that an unfinished attempt at the same job left in `out` or
    in a folder of `resume_from`.

    Raises ConfigError for an unknown kind, an invalid spec or a missing input.
    """
    if kind not in SPECS:
        raise ConfigError(f"unknown kind of job {kind!r}: use one of {', '.join(SPECS)}")
    try:
        checked = SPECS[kind].validate_python(spec)
    except ValidationError as error:
        problem = f"the spec of this {kind} job is wrong: {field_errors(error)}"
        raise ConfigError(problem) from error
    folders = {role: Path(folder) for role, folder in inputs.items()}
    if kind != "prepare" and "candidates" not in folders:
        raise ConfigError(f'a {kind} job needs the input "candidates": a folder that prepare wrote')
    match checked:
        case CandidatesSpec():
            prepare_candidates(checked, out, report)
        case TokensSpec():
            from xsweep.evaluator.models.token_store import prepare_tokens

            prepare_tokens(checked, out)
        case TeachSpec():
            _teach(checked, folders, out, report, resume_from)
        case EvaluateSpec():
            evaluate_together([Evaluation(checked, folders, out)], report, resume_from)
    write_manifest(out)


class Evaluation(NamedTuple):
    """One evaluation: its spec, its input folders by role and its own folder."""

    spec: EvaluateSpec
    inputs: Mapping[str, Path]
    """`candidates`; optionally `tokens`; `run` (a training's folder) for the scorer of that name"""
    out: Path


def evaluate_together(
    evaluations: Sequence[Evaluation],
    report: Report | None = None,
    resume_from: Sequence[Path] = (),
) -> None:
    """Evaluates one model on several collections: pairs that they share are scored once.

    Writes run.trec.gz, per_query.json, summary.json and provenance.json to each folder `out`. The
    same job writes the same bytes into the run and the per-query values every time, also when it
    resumes from what an earlier attempt left in the first `out` or in a folder of `resume_from`.

    Raises ConfigError if they differ in the scorer or in how pairs are scored.
    """
    origins = [provenance.collect(each.spec.model_dump(mode="json")) for each in evaluations]
    candidates = [read_candidates(each.inputs["candidates"]) for each in evaluations]
    before = [
        {query_id: dict(islice(docs.items(), each.spec.depth)) for query_id, docs in run.items()}
        for each, (_, _, run) in zip(evaluations, candidates, strict=True)
    ]
    after = _score(evaluations, candidates, before, report, resume_from)
    for place, each in enumerate(evaluations):
        run, figures = after[place]
        summary = _write(each, candidates[place], before[place], run) | figures
        provenance.seal(each.out, origins[place], summary, precision=figures["precision"])
        shutil.rmtree(each.out / PARTIAL_FOLDER, ignore_errors=True)


def _score(
    evaluations: Sequence[Evaluation],
    candidates: Sequence[Candidates],
    runs: Sequence[Run],
    report: Report | None,
    resume_from: Sequence[Path],
) -> list[tuple[Run, dict]]:
    """Runs in the scorer's order, with the figures of computing them."""
    first = evaluations[0]
    if isinstance(first.spec.scorer, FirstStageScorer):
        figures: dict = {"pairs": 0, "pairs_per_s": 0.0, "padding_waste": 0.0, "seconds": 0.0}
        figures |= {"precision": "none", "precision_reason": "nothing is scored"}
        return [(run, figures) for run in runs]
    from xsweep.evaluator.models.token_store import Sources
    from xsweep.evaluator.rerank import ToRerank, rerank

    if any(_scoring_key(each) != _scoring_key(first) for each in evaluations):
        raise ConfigError("evaluations that share their scoring must agree on model and settings")
    lists = [
        ToRerank(
            {query_id: list(docs) for query_id, docs in run.items()},
            Sources(held.queries, _texts_of(each.spec), each.inputs.get("tokens")),
        )
        for each, held, run in zip(evaluations, candidates, runs, strict=True)
    ]
    partial_folders = [folder / PARTIAL_FOLDER for folder in (first.out, *resume_from)]
    results = rerank(_models(first), lists, first.spec, report, partial_folders)
    return [(result.run, result.figures()) for result in results]


def _scoring_key(evaluation: Evaluation) -> tuple:
    """Everything that determines the score of a pair."""
    scoring = evaluation.spec.model_dump(include=set(ScoringSpec.model_fields))
    return evaluation.spec.scorer, evaluation.inputs.get("run"), scoring


def _texts_of(spec: EvaluateSpec) -> Callable:
    """A lookup that loads the collection only when the token store does not fit."""
    return lambda ids: load_collection(spec.collection).document_texts(ids)


def _models(evaluation: Evaluation) -> TeacherModelSpec:
    scorer, inputs = evaluation.spec.scorer, evaluation.inputs
    if isinstance(scorer, ModelScorer):
        return scorer.model
    if "run" not in inputs:
        raise ConfigError('the scorer "run" needs the input "run": the folder of a training')
    trained = ModelSpec(folder=str(inputs["run"] / "model"))
    return TeacherModelSpec(type="cross_encoder", models=(trained,))


def _write(evaluation: Evaluation, candidates: Candidates, before: Run, after: Run) -> dict:
    """Writes the run and its per-query values; returns the summary of its measures."""
    spec, out = evaluation.spec, evaluation.out
    write_run(out / "run.trec.gz", after, tag=spec.scorer.type)
    per_query = evaluate_run(candidates.qrels, after, spec.measures)
    with write_text(out / "per_query.json") as write:
        write(json.dumps(per_query) + "\n")
    distinct = {score for docs in after.values() for score in docs.values()}
    depth = max((len(docs) for docs in before.values()), default=0)
    recall = f"R@{spec.depth or max(1, depth)}"
    return {
        "means": {measure: mean(values) for measure, values in per_query.items()},
        "queries": len(candidates.qrels),
        "queries_without_results": len(candidates.qrels.keys() - after.keys()),
        "scores_are_constant": len(distinct) == 1 < sum(map(len, after.values())),
        "recall": {recall: mean(evaluate_run(candidates.qrels, before, [recall])[recall])},
    }


def _teach(
    spec: TeachSpec,
    inputs: Mapping[str, Path],
    out: Path,
    report: Report | None,
    resume_from: Sequence[Path],
) -> None:
    """Writes scores.run.gz: scores of all candidates and of the relevant documents they miss.

    Inputs: `candidates`; optionally `tokens`. Relevant documents without a text in the collection
    (a subset of a larger corpus) cannot be scored; the summary counts them.
    """
    from xsweep.evaluator.models.token_store import Sources, TokenStore
    from xsweep.evaluator.rerank import ToRerank, rerank

    origin = provenance.collect(spec.model_dump(mode="json"))
    queries, qrels, run = read_candidates(inputs["candidates"])
    collection = load_collection(spec.collection)
    missed = {
        query_id: [
            doc_id
            for doc_id, grade in grades.items()
            if grade > 0 and doc_id not in run.get(query_id, {})
        ]
        for query_id, grades in qrels.items()
    }
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
    to_score = {query_id: [*run.get(query_id, {}), *added[query_id]] for query_id in qrels}
    sources = Sources(queries, collection.document_texts, inputs.get("tokens"))
    lists = [ToRerank(to_score, sources)]
    partial_folders = [folder / PARTIAL_FOLDER for folder in (out, *resume_from)]
    (result,) = rerank(spec.model, lists, spec, report, partial_folders)
    shutil.rmtree(out / PARTIAL_FOLDER, ignore_errors=True)
    write_run(out / "scores.run.gz", result.run, tag=spec.model.type)
    relevant_missed, relevant_added = (sum(map(len, each.values())) for each in (missed, added))
    summary = {
        "queries": len(result.run),
        "relevant_added": relevant_added,
        "relevant_without_text": relevant_missed - relevant_added,
        **result.figures(),
    }
    provenance.seal(out, origin, summary, precision=result.precision)
