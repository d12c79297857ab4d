"""The arithmetic of a job, and the seconds that it takes on a device by the stated model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from orchestrator.estimate.devices import (
    CPU_SCORING_SHARE,
    CPU_TRAINING_SHARE,
    LAYER_S,
    SCORING_SHARE,
    STEP_S,
    TRAINING_SHARE,
    Device,
)
from orchestrator.estimate.shapes import Shape, shape_of
from orchestrator.estimate.sizes import QUERY_TOKENS, Size, size_of

SPECIAL_TOKENS = 3
START_S, WARM_S = 15.0, 5.0
"""A worker's start, loading a model, reading candidates; and an evaluation in a worker that is
there."""
TOKENISED_PER_S, INDEXED_PER_S = 3_000.0, 5_000.0
"""Documents per CPU second: tokenised, and put into a BM25 index."""


class Work(NamedTuple):
    """What a job computes."""

    pairs: float = 0.0
    """Scored or trained on."""
    training_flops: float = 0.0
    scoring_flops: float = 0.0
    steps: int = 0
    layers: int = 0
    cpu_s: float = 0.0
    """On one core, whatever the device."""
    bf16: bool = False
    """Whether a CPU may compute it in bf16, where that is faster."""


def work_of(kind: str, spec: Mapping[str, Any], parents: Mapping[str, "Planned"]) -> Work:
    """The arithmetic of a job from its spec; an evaluation's model is that of its `run` parent."""
    match kind:
        case "train":
            return _training(spec)
        case "evaluate":
            return _evaluation(spec, parents)
        case "search":
            return Work(cpu_s=1.0)
        case "teach":
            size, _ = size_of(spec["collection"])
            pairs = float(size.queries * _depth_of(parents, 100))
            flops = _model_flops(spec["model"], pairs, size, spec)
            return Work(pairs=pairs, scoring_flops=flops, cpu_s=START_S, bf16=_may_be_bf16(spec))
    return _preparation(spec)


class Planned(NamedTuple):
    """A job as this module sees its parents."""

    kind: str
    spec: Mapping[str, Any]


def _training(spec: Mapping[str, Any]) -> Work:
    shape, _ = shape_of(spec["backbone"])
    how = spec["optimisation"]
    size, _ = size_of(spec["collection"])
    pairs = float(how["steps"] * how["batch_queries"] * documents_per_query(spec["teacher"]))
    scored = flops = 0.0
    if validation := spec["validation"]:
        times = -(-how["steps"] // validation["every_steps"])
        for collection in (validation["collection"], *validation.get("further", ())):
            validated, _ = size_of(collection)
            scored += (some := times * validated.queries * validation["depth"])
            flops += some * _pair_flops(shape, validated, spec)
    return Work(
        pairs=pairs + scored,
        training_flops=3 * pairs * _pair_flops(shape, size, spec),
        scoring_flops=flops,
        steps=how["steps"],
        layers=shape.layers,
        cpu_s=START_S,
        bf16=_may_be_bf16(how),
    )


def _evaluation(spec: Mapping[str, Any], parents: Mapping[str, Planned]) -> Work:
    scorer = spec["scorer"]
    if scorer["type"] == "first_stage":
        return Work(cpu_s=1)
    size, _ = size_of(spec["collection"])
    pairs = float(size.queries * min(spec["depth"] or _depth_of(parents, 1000), size.documents))
    pairs *= spec.get("max_passages", 1)
    model = scorer.get("model")
    if scorer["type"] == "run":
        model = {"type": "cross_encoder", "models": [parents["run"].spec["backbone"]]}
    flops = _model_flops(model, pairs, size, spec)
    return Work(pairs=pairs, scoring_flops=flops, cpu_s=WARM_S, bf16=_may_be_bf16(spec))


def _may_be_bf16(settings: Mapping[str, Any]) -> bool:
    return settings.get("precision", "fp32") != "fp32"


def _model_flops(
    model: Mapping[str, Any], pairs: float, size: Size, spec: Mapping[str, Any]
) -> float:
    """Scoring pairs with models; a bi-encoder reads each of their texts once."""
    texts = pairs
    if model["type"] == "bi_encoder":
        texts = min(pairs, size.documents + size.queries)
    return sum(texts * _pair_flops(shape_of(each)[0], size, spec) for each in model["models"])


def _preparation(spec: Mapping[str, Any]) -> Work:
    if spec["type"] == "tokens":
        size, _ = size_of(spec["documents"])
        return Work(cpu_s=5 + size.documents * max(1.0, size.words / 100) / TOKENISED_PER_S)
    size, _ = size_of(spec["collection"])
    stage = spec["first_stage"]
    if stage["type"] == "bm25":
        return Work(cpu_s=5 + (size.documents + 100 * size.queries) / INDEXED_PER_S)
    if "model" in stage:
        shape, _ = shape_of(stage["model"])
        tokens = size.documents * size.document_tokens(stage.get("document_tokens", 256))
        flops = tokens * shape.token_flops(128)
        cpu_s = START_S + size.documents / INDEXED_PER_S
        return Work(scoring_flops=flops, cpu_s=cpu_s, bf16=_may_be_bf16(stage))
    return Work(cpu_s=2 + size.queries * spec["depth"] / 500_000)


def _pair_flops(shape: Shape, size: Size, spec: Mapping[str, Any]) -> float:
    """One pair's forward pass, at mean lengths."""
    query = min(QUERY_TOKENS, spec["query_tokens"])
    tokens = SPECIAL_TOKENS + query + size.document_tokens(spec["document_tokens"])
    return tokens * shape.token_flops(round(tokens))


def _depth_of(parents: Mapping[str, Planned], usual: int) -> int:
    return int(parents["candidates"].spec["depth"]) if "candidates" in parents else usual


def documents_per_query(teacher: Mapping[str, Any]) -> int:
    """Documents of one sample."""
    if teacher.get("negatives"):
        return int(teacher["negatives"]) + 1
    return int(teacher.get("list_size") or teacher.get("depth") or 2)


def seconds(work: Work, device: Device, cpus: float) -> float:
    """How long a job takes on one device by the stated model.

    On a GPU a step takes as long as its arithmetic at the assumed share of the peak, but no less
    than launching its kernels; on a CPU it is arithmetic on `cpus` cores, at the assumed share of
    theirs: 1e13 FLOP of training on a core of 1e11 FLOP/s take 167 s, in bf16 twice as fast 83 s.
    BERT-Base, 200,000 steps
    of 64 pairs with 89 tokens on an H100: 200,000 x max(9.9 ms, 12 x 1.2 + 5 ms) = 3,880 s.
    """
    cores = max(1.0, cpus)
    if not device.is_gpu:
        rate = device.flops_per_s * cores * (device.bf16_times if work.bf16 else 1.0)
        training_s = work.training_flops / (CPU_TRAINING_SHARE * rate)
        return training_s + work.scoring_flops / (CPU_SCORING_SHARE * rate) + work.cpu_s
    training_s = work.training_flops / (TRAINING_SHARE * device.flops_per_s)
    launching_s = work.steps * (LAYER_S * work.layers + STEP_S) if work.steps else 0.0
    scoring_s = work.scoring_flops / (SCORING_SHARE * device.flops_per_s)
    return max(training_s, launching_s) + scoring_s + work.cpu_s / cores
