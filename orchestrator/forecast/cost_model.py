"""The arithmetic of a job, and the seconds that it takes on a device by the stated model.

Rates of devices: published or measured peaks, and the share of them that jobs reach.

What jobs cost next to each other, by a rule of thumb: it orders them and weighs progress.

Rough on purpose. `xsweep.orchestrator.estimate` forecasts time and money.

Bytes: GPU memory of a training, disk for what a sweep keeps, and what it has to download.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from xsweep.evaluator.data.suites import TOKENS_PER_WORD, Size
from xsweep.evaluator.device import bf16_units
from xsweep.evaluator.specs import ModelSpec
from xsweep.orchestrator.forecast.catalog import (
    QUERY_TOKENS,
    Shape,
    shape_of,
    size_of,
)
from xsweep.orchestrator.settings import KINDS
from xsweep.trainer.specs import TeacherSpec, TrainSpec

if TYPE_CHECKING:
    from xsweep.db.jobs import NewJob


TRAINING_SHARE = 0.30


SCORING_SHARE = 0.40
"""Of the peak, assumed where nothing was measured: what well-kept encoders reach on such GPUs."""


CPU_TRAINING_SHARE, CPU_SCORING_SHARE = 0.6, 0.75
"""Of a core's peak, in fp32 and bf16: 62% and 63% were seen, and 62% to 89%."""


LAYER_S, STEP_S = 0.0012, 0.005
"""Launching the kernels of one layer's training step and of the optimiser: small models on large
GPUs wait for these and not for arithmetic. Assumed as well."""


class Device(NamedTuple):
    """One GPU, or one core of a CPU."""

    name: str
    flops_per_s: float
    """Peak of dense matrix products: in bf16, for a core in fp32."""
    memory_bytes: float
    is_gpu: bool = True
    bf16_times: float = 1.0
    """How much faster a core computes bf16 products."""


GPUS = {
    device.name: device
    for device in (
        Device("H200", 989e12, 141e9),
        Device("H100", 989e12, 80e9),
        Device("A100", 312e12, 80e9),
        Device("L40S", 362e12, 48e9),
        Device("A10G", 70e12, 24e9),
        Device("L4", 121e12, 24e9),
        Device("RTX4090", 165e12, 24e9),
        Device("RTX3090", 71e12, 24e9),
    )
}
"""Dense bf16 as in the vendor's data sheets, without sparsity."""


CPU_CORE = Device("CPU", 1.1e11, 0, is_gpu=False)
"""A core with AVX-512, without units for bf16."""


@cache
def this_core() -> Device:
    """A core of this machine, its fp32 peak measured in about 0.1 s.

    Units for bf16 are taken to double it: 111 and 222 GFLOP/s were seen (AMD EPYC, AVX512-BF16).
    """
    left, right = np.ones((1024, 384), np.float32), np.ones((384, 1536), np.float32)
    with threadpool_limits(1):
        fastest_s = min(_seconds_of_product(left, right) for _ in range(10))
    rate = 2 * left.size * right.shape[1] / fastest_s
    return CPU_CORE._replace(flops_per_s=rate, bf16_times=2.0 if bf16_units() else 1.0)


def _seconds_of_product(left: np.ndarray, right: np.ndarray) -> float:
    started = time.perf_counter()
    left @ right
    return time.perf_counter() - started


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


PAIRS_PER_S = 20.0
"""Trained on by a small machine and a backbone of six layers."""


QUERIES = 200
"""Of a collection."""


SCORING = 1 / 3
"""What it takes to score a pair, next to training on it."""


def training_s(spec: TrainSpec) -> float:
    """Seconds of a training with its validations."""
    settings, validation = spec.optimisation, spec.validation
    pairs = float(settings.steps * settings.batch_queries) * _documents_per_query(spec.teacher)
    if validation:
        times = -(-settings.steps // validation.every_steps)
        queries = QUERIES * len(validation.collections)
        pairs += times * queries * validation.depth * SCORING
    return pairs / PAIRS_PER_S * _size(spec.backbone)


def scoring_s(depth: int, backbone: ModelSpec | None = None) -> float:
    """Seconds of scoring a collection's candidates, by six layers if no backbone is given."""
    return QUERIES * depth * SCORING / PAIRS_PER_S * (_size(backbone) if backbone else 1.0)


def _size(backbone: ModelSpec) -> float:
    """What a pair costs, with as many layers as are kept, next to a backbone of six layers."""
    return backbone.layers / 6 if backbone.layers else 1.0


def _documents_per_query(teacher: TeacherSpec) -> int:
    if teacher.negatives:
        return teacher.negatives + 1
    return teacher.list_size or teacher.depth or 2


STATE_BYTES = 16
"""Of a parameter: fp32 weight, gradient and AdamW's two moments."""


ACTIVATION_BYTES = 34
"""Of a token, a layer and a hidden unit in bf16: Korthikanti et al. 2022, eq. 1, without the
attention matrix (https://arxiv.org/abs/2205.05198); twice as many in fp32."""


CONTEXT_BYTES = 1e9
"""CUDA's own, and what its allocator loses."""


RUN_LINE_BYTES = 14
"""Of a line of a TREC run, gzipped."""


FILE_SIZES = {
    "4d99696386f96a7f1631076bcc53ac3c": 1.8e9,
    "a2575af08a19b47c2041e67c9efcd917": 1.8e9,
    "6ed152027f7270f32fcbfaaa6def951e": 3.5e8,
    "c37b78874d4893a00566ab40aa453c56": 3.5e7,
}
"""By md5, from lines: 40M of 46 bytes; 10,000 queries with 500 and 50 lines of 70 bytes."""


class Download(NamedTuple):
    """Something that jobs read and that is not here."""

    name: str
    size_bytes: float | None
    how: str


def gpu_memory_bytes(spec: Mapping[str, Any]) -> float:
    """Memory of a training, at most: states of all parameters and one backward pass.

    BERT-Base in bf16 with 16,384 tokens a pass: 108M x 16 + 16,384 x 12 x 768 x 34 bytes and 1 GB
    are 7.9 GB.
    """
    shape, _ = shape_of(spec["backbone"])
    how = spec["optimisation"]
    width = ACTIVATION_BYTES * (1 if how["precision"] == "bf16" else 2)
    kept = 2 if how["gradient_checkpointing"] else shape.layers
    activations = how["micro_batch_tokens"] * kept * shape.hidden * width
    return shape.parameters * STATE_BYTES + activations + CONTEXT_BYTES


def disk_bytes(jobs: "Iterable[NewJob]") -> dict[str, float]:
    """What the store keeps when all is done, by kind of job."""
    found = dict.fromkeys(KINDS, 0.0)
    for job in jobs:
        found[job.kind] += _kept_bytes(job.kind, job.spec)
    return found


def _kept_bytes(kind: str, spec: Mapping[str, Any]) -> float:
    if kind == "train":
        return 4.0 * shape_of(spec["backbone"])[0].parameters
    if kind == "search":
        return 0.0  # the winner's files, under a second name
    size, _ = size_of(spec["documents" if spec.get("type") == "tokens" else "collection"])
    if spec.get("type") == "tokens":
        shape, _ = shape_of(spec["tokenizer"])
        tokens = min(size.words * TOKENS_PER_WORD, float(spec["max_tokens"]))
        return size.documents * tokens * (2 if shape.vocabulary <= 65_536 else 4)
    depth = min(spec.get("depth") or 1000, size.documents)
    return float(RUN_LINE_BYTES * size.queries * depth)


def downloads(jobs: "Iterable[NewJob]") -> list[Download]:
    """Data sets, files and models that are not on this machine, each once."""
    found: dict[str, Download] = {}
    looked_at: set[str] = set()
    for job in jobs:
        for block in blocks(job.spec):
            # The same few blocks stand in thousands of jobs.
            if (key := repr(block)) in looked_at:
                continue
            looked_at.add(key)
            for each in _missing(block):
                found.setdefault(each.name, each)
    return sorted(found.values(), key=lambda each: (-(each.size_bytes or 0), each.name))


def _missing(block: Mapping[str, Any]) -> Iterator[Download]:
    if block.get("source") == "irds":
        yield from _of_dataset(block)
    elif block.get("type") == "docpairs":
        yield Download(f"docpairs of {block['id']}", 1.84e9, "fetched by ir_datasets")
    elif block.keys() == {"path", "md5", "sha256"} and not Path(block["path"]).exists():
        size = FILE_SIZES.get(block["md5"] or "")
        yield Download(block["path"], size, "put it there; its checksum is verified")
    elif block.get("id") and "layers" in block and not _in_cache(block["id"]):
        shape, known = shape_of(block)
        size = 4.0 * shape.parameters if known else None
        yield Download(block["id"], size, "fetched from huggingface.co")


def _of_dataset(block: Mapping[str, Any]) -> Iterator[Download]:
    from xsweep.errors import DataError
    from xsweep.evaluator.data.irds import sources
    from xsweep.evaluator.specs import IrdsSpec

    try:
        for source in sources(IrdsSpec(**block)):
            if not source.present:
                yield Download(str(source.path), source.size_bytes, source.how)
    except DataError as problem:
        yield Download(block["id"], None, str(problem))


def _in_cache(model: str) -> bool:
    """Whether a model of Hugging Face lies in its usual cache."""
    import os

    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    return (hub / f"models--{model.replace('/', '--')}").is_dir()


def blocks(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings inside a JSON value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from blocks(item)
