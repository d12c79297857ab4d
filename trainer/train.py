"""The job `train`: from a specification and its inputs to a finished folder."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from xsweep.errors import ConfigError, DivergenceError, field_errors, first_line
from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.collection import Collection
from xsweep.evaluator.data.trec import Run
from xsweep.evaluator.first_stage import read_candidates
from xsweep.evaluator.measures import evaluate_run, mean
from xsweep.evaluator.models.causal_reranker import load_answering
from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.evaluator.models.token_store import TokenStore
from xsweep.evaluator.models.tokenizer import tokenize
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.provenance import collect, now
from xsweep.evaluator.scoring import score_pairs, share_out
from xsweep.evaluator.specs import IdenticalIds, ModelSpec, ParquetSpec, ScoringSpec
from xsweep.evaluator.varlen.encoders import has_unpadded, runs_unpadded
from xsweep.trainer.batching import Assembler
from xsweep.trainer.cpu_kernels import keep_freed_memory
from xsweep.trainer.distributed import own_device, rank_and_ranks, sum_over_ranks
from xsweep.trainer.loop import Progress, Report, Validate, train_model
from xsweep.trainer.result import export_model, read_json, write_result
from xsweep.trainer.search import (
    apply_winner,
    fingerprint,
    read_winner,
    record_divergence,
    reuse_winner,
)
from xsweep.trainer.specs import TeacherSpec, TrainSpec, validation_roles
from xsweep.trainer.teachers import Teacher
from xsweep.trainer.teachers.lists import ListTeacher, read_lists
from xsweep.trainer.teachers.pairs import open_pairs


def run_job(
    kind: str,
    spec: dict,
    inputs: Mapping[str, Path],
    out: Path,
    report: Report | None = None,
    resume_from: Sequence[Path] = (),
) -> None:
    """Trains as the specification says and fills `out`, manifest last.

    Inputs are folders by role: `tokens` (a token store of the documents), `candidates` or
    `teacher` as the teacher's source needs, `start` (the stage that the training continues),
    `search` (the search that gives settings), `validation` and `validation_tokens`.
    `resume_from` are folders of earlier attempts at the same job, newest first.

    Raises ConfigError for a wrong specification, DataError for wrong inputs, DivergenceError, and
    any exception of `report` (Stopped: after a checkpoint). A trial that diverges is a result.
    """
    if kind != "train":
        raise ConfigError(f"the trainer runs jobs of kind 'train', not {kind!r}")
    try:
        settings = TrainSpec.model_validate(spec)
    except ValidationError as error:
        raise ConfigError(f"training specification: {field_errors(error)}") from None
    folders = {role: Path(folder) for role, folder in inputs.items()}
    if settings.searched:
        winner = read_winner(folders)
        settings = apply_winner(settings, winner)
        if reuse_winner(settings, winner, Path(out)):
            return
    try:
        train(settings, folders, Path(out), report, resume_from)
    except DivergenceError as error:
        if not settings.trial:
            raise
        record_divergence(settings, Path(out), error)


def train(
    spec: TrainSpec,
    inputs: Mapping[str, Path],
    out: Path,
    report: Report | None = None,
    resume_from: Sequence[Path] = (),
) -> None:
    """Runs one training with final settings, see `run_job`."""
    started = time.perf_counter()
    provenance = collect(spec.model_dump(mode="json"))
    if "tokens" not in inputs:
        raise ConfigError("a training needs the input 'tokens': name its folder in `inputs`")
    out.mkdir(parents=True, exist_ok=True)
    collection = load_collection(spec.collection)
    documents = TokenStore(inputs["tokens"])
    identical_ids = spec.collection.identical_ids
    teacher = open_teacher(spec.teacher, collection, documents, inputs, identical_ids)
    model, tokenizer = load_start(spec, inputs)
    adapters = add_adapters(model, spec) if spec.optimisation.lora else None
    model.to(own_device())
    if model.device.type == "cpu":
        keep_freed_memory()
    elif spec.optimisation.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    packed = runs_unpadded(model, spec.optimisation.layout)
    queries: Any = documents
    if not isinstance(spec.collection, ParquetSpec):  # its queries are among its documents
        query_ids = tokenize(tokenizer, list(teacher.queries.values()), spec.query_tokens)
        queries = dict(zip(teacher.queries, query_ids, strict=True))
    encoder = PairEncoder(tokenizer)
    progress = train_model(
        spec,
        model,
        teacher,
        Assembler(spec, encoder, documents, queries, packed=packed, device=model.device),
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
        summary["search"] = read_winner(inputs).choice
    if spec.trial:
        summary["fingerprint"] = fingerprint(spec)
    if progress.halted:
        summary["halted"] = True
    else:
        if adapters:
            model = merge_adapters(adapters, out / "model" / "adapter")
        export_model(model, tokenizer, out / "model", spec, summary, provenance)
    write_result(out, summary, provenance | {"ended": now()})


def open_teacher(
    spec: TeacherSpec,
    collection: Collection,
    documents: TokenStore,
    inputs: Mapping[str, Path],
    identical_ids: IdenticalIds = "keep",
) -> Teacher:
    """Opens the teacher of a specification over a collection's queries and qrels.

    Raises DataError if a file is missing, malformed or not the declared one, if a document is
    unknown, or if nothing remains to train on.
    """
    if spec.source.pairs:
        return open_pairs(spec.source, collection, documents)
    lists = read_lists(spec, inputs)
    return ListTeacher(
        spec,
        lists,
        collection.queries or documents,  # type: ignore[arg-type] # queries among the documents
        lists.labels or collection.qrels,
        documents,
        drop_identical=identical_ids == "drop",
    )


def load_start(
    spec: TrainSpec, inputs: Mapping[str, Path]
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model before the first step: the backbone with a new head, or an earlier stage's."""
    if not spec.continues:
        if spec.backbone.prompt:
            return load_answering(spec.backbone, spec.seed)
        return load_cross_encoder(spec.backbone, seed=spec.seed)
    if "start" not in inputs:
        raise ConfigError("this training continues another: name its folder as input 'start'")
    folder = str(inputs["start"] / "model")
    return load_cross_encoder(ModelSpec(folder=folder, attention=spec.backbone.attention))


def add_adapters(model: PreTrainedModel, spec: TrainSpec) -> Any:
    """Adds low-rank adapters to a decoder, drawn under the seed, and freezes its other weights.

    Returns the `peft` model around it. Raises ConfigError for a model that has passes of its own,
    which would not read the adapters, or without `peft`.
    """
    lora = spec.optimisation.lora
    assert lora
    if has_unpadded(model):
        raise ConfigError(f"lora is for decoders, this is a {model.config.model_type} model")
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise ConfigError(f"lora needs peft ({first_line(error)}): install xsweep[lora]") from error
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,  # the head is trained, too
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or "all-linear",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        try:
            adapters = get_peft_model(model, config)
        except (ValueError, TypeError) as error:  # the latter for layers of a head, as DistilBERT's
            raise ConfigError(f"lora: {first_line(error)}") from error
    config.base_model_name_or_path = spec.backbone.id or spec.backbone.package
    return adapters


def merge_adapters(adapters: Any, folder: Path) -> PreTrainedModel:
    """Writes adapters and head in the format of `peft`; returns the model that has them merged."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    save_file(get_peft_model_state_dict(adapters), folder / "adapter_model.safetensors")
    adapters.active_peft_config.save_pretrained(folder)
    return adapters.merge_and_unload()


def prepare_validation(
    spec: TrainSpec, inputs: Mapping[str, Path], tokenizer: PreTrainedTokenizerFast
) -> Validate | None:
    """A function that validates a model by re-ranking candidates; None without a validation.

    Ranks share the pairs: each must call it, and each gets the value.

    It needs the inputs `validation` (a candidates folder) and `validation_tokens`, and
    `validation_2`, `validation_tokens_2` and so on for further collections. A collection's value
    is the mean over all queries of its qrels, and the result the unweighted mean of collections;
    positives that the first stage missed are not added.
    """
    if spec.validation is None:
        return None
    parts: list[Validate] = []
    for place in range(len(spec.validation.collections)):
        roles = validation_roles(place)
        for role in roles:
            if role not in inputs:
                raise ConfigError(
                    f"validation needs the input {role!r}: name its folder in `inputs`"
                )
        candidates, tokens = (Path(inputs[role]) for role in roles)
        parts.append(_prepare_collection(spec, candidates, TokenStore(tokens), tokenizer))
    return lambda model: fmean(part(model) for part in parts)


def _prepare_collection(
    spec: TrainSpec, folder: Path, documents: TokenStore, tokenizer: PreTrainedTokenizerFast
) -> Validate:
    """A function that validates a model on one collection."""
    settings = spec.validation
    assert settings
    candidates = read_candidates(folder)
    keys = [
        (query_id, doc_id)
        for query_id, scores in candidates.run.items()
        if query_id in candidates.qrels
        for doc_id in list(scores)[: settings.depth]
    ]
    if not keys:
        raise ConfigError(f"{folder}: no candidates for a judged query, nothing to validate on")
    query_ids = list(dict.fromkeys(query_id for query_id, _ in keys))
    texts = [candidates.queries[query_id] for query_id in query_ids]
    ids = tokenize(tokenizer, texts, spec.query_tokens)
    queries = dict(zip(query_ids, ids, strict=True))
    pairs = [(queries[query_id], documents[doc_id]) for query_id, doc_id in keys]
    encoder = PairEncoder(tokenizer)
    scoring = ScoringSpec(
        query_tokens=spec.query_tokens,
        document_tokens=spec.document_tokens,
        precision=spec.optimisation.precision,
    )

    tokens_P = np.array([len(query) + len(document) for query, document in pairs])

    def validate(model: PreTrainedModel) -> float:
        rank, ranks = rank_and_ranks()
        own = share_out(tokens_P, ranks)[rank]
        scores_P = torch.zeros(len(pairs), device=model.device)
        if len(own):
            scored = score_pairs(model, encoder, [pairs[row] for row in own.tolist()], scoring)
            scores_P[own] = torch.from_numpy(scored.scores).to(model.device)
        scores = sum_over_ranks(scores_P).tolist()
        reranked: Run = {query_id: {} for query_id in query_ids}
        for (query_id, doc_id), score in zip(keys, scores, strict=True):
            reranked[query_id][doc_id] = score
        (values,) = evaluate_run(candidates.qrels, reranked, [settings.measure]).values()
        return mean(values)

    return validate


def describe_stage(folder: Path) -> dict:
    """An earlier stage's objective, steps and own stage before, for the summary."""
    objective = read_json(folder / "provenance.json")["spec"]["objective"]["name"]
    summary = read_json(folder / "summary.json")
    before = {"stage_before": summary["stage_before"]} if "stage_before" in summary else {}
    return {"objective": objective, "steps": summary["steps"], **before}


def summarise(spec: TrainSpec, progress: Progress, teacher: Teacher, seconds: float) -> dict:
    """The figures of a finished training; `pairs_per_s` counts the time of training steps only."""
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
