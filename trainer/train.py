"""The job `train`: from a specification and its inputs to a finished folder.

Validation: one measure of the model so far, from re-ranking the candidates of collections.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from xsweep.errors import ConfigError, DivergenceError
from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.files import write_manifest
from xsweep.evaluator.data.readers import read_texts
from xsweep.evaluator.data.trec import Run, read_qrels, read_run
from xsweep.evaluator.measures import evaluate_run, mean
from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.evaluator.models.token_store import TokenStore
from xsweep.evaluator.models.tokenizer import tokenize
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.provenance import collect, now
from xsweep.evaluator.scoring import score_pairs
from xsweep.evaluator.specs import ModelSpec, ScoringSpec
from xsweep.trainer.batching import Assembler
from xsweep.trainer.checkpoint import writing
from xsweep.trainer.cpu_kernels import keep_freed_memory
from xsweep.trainer.export import export_model
from xsweep.trainer.forward import runs_packed
from xsweep.trainer.loop import Progress, Report, train_model
from xsweep.trainer.search import fingerprint, note_divergence, read_winner, settle, take_over
from xsweep.trainer.specs import TrainSpec, validation_roles
from xsweep.trainer.teachers import open_teacher
from xsweep.trainer.teachers.teacher import Teacher

Validate = Callable[[PreTrainedModel], float]


def prepare_validation(
    spec: TrainSpec, inputs: Mapping[str, Path], tokenizer: PreTrainedTokenizerFast
) -> Validate | None:
    """A function that measures a model on the validation collections; None where there are none.

    It needs the inputs `validation` (a candidates folder) and `validation_tokens`, and
    `validation_2`, `validation_tokens_2` and so on for further collections. A collection's value
    is the mean over every query of its qrels, and the result the unweighted mean of collections;
    positives that the first stage missed are not added.
    """
    if spec.validation is None:
        return None
    parts: list[Validate] = []
    for place in range(len(spec.validation.collections)):
        candidates, tokens = validation_roles(place)
        for role in (candidates, tokens):
            if role not in inputs:
                raise ConfigError(
                    f"validation needs the input {role!r}: name its folder in `inputs`"
                )
        parts.append(_prepare(spec, Path(inputs[candidates]), Path(inputs[tokens]), tokenizer))
    return lambda model: fmean(part(model) for part in parts)


def _prepare(
    spec: TrainSpec, folder: Path, tokens: Path, tokenizer: PreTrainedTokenizerFast
) -> Validate:
    settings = spec.validation
    assert settings
    run = read_run(folder / "candidates.run.gz")
    qrels = read_qrels(folder / "qrels.txt")
    texts = dict(read_texts(folder / "queries.jsonl.gz"))
    documents = TokenStore(tokens)
    keys = [
        (query_id, doc_id)
        for query_id, scores in run.items()
        if query_id in qrels
        for doc_id in list(scores)[: settings.depth]
    ]
    if not keys:
        raise ConfigError(f"{folder}: no candidates for a judged query, nothing to validate on")
    query_ids = list(dict.fromkeys(query_id for query_id, _ in keys))
    ids = tokenize(tokenizer, [texts[query_id] for query_id in query_ids], spec.query_tokens)
    queries = dict(zip(query_ids, ids, strict=True))
    pairs = [(queries[query_id], documents[doc_id]) for query_id, doc_id in keys]
    encoder = PairEncoder(tokenizer)
    scoring = ScoringSpec(
        query_tokens=spec.query_tokens,
        document_tokens=spec.document_tokens,
        precision=spec.optimisation.precision,
    )

    def validate(model: PreTrainedModel) -> float:
        scored = score_pairs(model, encoder, pairs, scoring)
        reranked: Run = {query_id: {} for query_id in query_ids}
        for (query_id, doc_id), score in zip(keys, scored.scores.tolist(), strict=True):
            reranked[query_id][doc_id] = score
        (values,) = evaluate_run(qrels, reranked, [settings.measure]).values()
        return mean(values)

    return validate


def run_job(
    kind: str,
    spec: dict,
    inputs: Mapping[str, Path],
    out: Path,
    report: Report | None = None,
    resume_from: Sequence[Path] = (),
) -> None:
    """Trains as the specification says and fills `out`, manifest last.

    Inputs are folders by role: `tokens` (a token store of the documents), what the teacher's
    source needs (`candidates` or `teacher`), `start` (an earlier training) where it continues
    one, and `validation` and `validation_tokens` where there is one. `resume_from` are folders of
    earlier attempts at the same job, newest first.

    Raises ConfigError for a wrong specification, DataError for wrong inputs, DivergenceError, and
    whatever `report` raises (Stopped: after a checkpoint).
    """
    if kind != "train":
        raise ConfigError(f"the trainer runs jobs of kind 'train', not {kind!r}")
    try:
        settings = TrainSpec.model_validate(spec)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"training specification: {'; '.join(wrong)}") from None
    folders = {role: Path(folder) for role, folder in inputs.items()}
    if settings.searched:
        winner = read_winner(folders)
        settings = settle(settings, winner)
        if take_over(settings, winner, Path(out)):
            return
    try:
        train(settings, folders, Path(out), report, resume_from)
    except DivergenceError as error:
        if not settings.trial:
            raise
        note_divergence(settings, Path(out), error)


def train(
    spec: TrainSpec,
    inputs: Mapping[str, Path],
    out: Path,
    report: Report | None = None,
    resume_from: Sequence[Path] = (),
) -> None:
    """See `run_job`."""
    started = time.perf_counter()
    provenance = collect(spec.model_dump(mode="json"))
    if "tokens" not in inputs:
        raise ConfigError("a training needs the input 'tokens': name its folder in `inputs`")
    out.mkdir(parents=True, exist_ok=True)
    collection = load_collection(spec.collection)
    documents = TokenStore(inputs["tokens"])
    teacher = open_teacher(spec.teacher, collection, documents, inputs)
    model, tokenizer = load_start(spec, inputs)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    if model.device.type == "cpu":
        keep_freed_memory()
    packed = runs_packed(model, spec.optimisation.layout)
    query_ids = tokenize(tokenizer, list(teacher.queries.values()), spec.query_tokens)
    queries = dict(zip(teacher.queries, query_ids, strict=True))
    progress = train_model(
        spec,
        model,
        teacher,
        Assembler(
            spec, PairEncoder(tokenizer), documents, queries, packed=packed, device=model.device
        ),
        out,
        validate=prepare_validation(spec, inputs, tokenizer),
        report=report,
        resume_from=resume_from,
    )
    if progress is None:
        return
    summary = summarise(spec, progress, teacher, time.perf_counter() - started)
    if spec.continues:
        summary["stage_before"] = describe_stage(inputs["start"])
    if "search" in inputs:
        summary["search"] = read_winner(inputs).pointer
    if spec.trial:
        summary["fingerprint"] = fingerprint(spec)
    if progress.halted:
        summary["halted"] = True
    else:
        export_model(model, tokenizer, out / "model", spec, summary, provenance)
    with writing(out):
        write_json(out / "summary.json", summary)
        write_json(out / "provenance.json", provenance | {"ended": now()})
        # Until here a failure leaves something to go on from.
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        write_manifest(out)


def load_start(
    spec: TrainSpec, inputs: Mapping[str, Path]
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model before the first step: the backbone under a new head, or an earlier stage's."""
    if not spec.continues:
        return load_cross_encoder(spec.backbone, seed=spec.seed)
    if "start" not in inputs:
        raise ConfigError("this training continues another: name its folder as input 'start'")
    folder = str(inputs["start"] / "model")
    return load_cross_encoder(ModelSpec(folder=folder, attention=spec.backbone.attention))


def describe_stage(folder: Path) -> dict:
    """What an earlier stage was: its objective, its steps, its own stage before."""
    earlier = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["spec"]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    before = {"stage_before": summary["stage_before"]} if "stage_before" in summary else {}
    return {"objective": earlier["objective"]["name"], "steps": summary["steps"], **before}


def summarise(spec: TrainSpec, progress: Progress, teacher: Teacher, seconds: float) -> dict:
    """The figures of a finished training; `pairs_per_s` is over training steps alone."""
    return {
        "steps": progress.step,
        "best_step": progress.best_step,
        "best_validation": progress.best_validation,
        "final_loss": progress.loss,
        "pairs": progress.pairs,
        "pairs_per_s": round(progress.pairs_per_s, 2),
        "padding_waste": round(progress.padding_waste, 4),
        "passes": round(progress.step * spec.optimisation.batch_queries / len(teacher), 3),
        "teacher": teacher.counts,
        "ranks": progress.ranks,
        "halved_budgets": progress.halved_budgets,
        "training_seconds": round(progress.seconds, 2),
        "validation_seconds": round(progress.validation_seconds, 2),
        "seconds": round(seconds, 2),
    }


def write_json(path: Path, value: dict) -> None:
    """Indented, with a final newline."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
