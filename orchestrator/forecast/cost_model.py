"""Cost model: a job's arithmetic, its seconds on a device, its memory and its disk space.

`work_of` and `seconds` state how long a job takes; `forecast.cost` corrects them by measured jobs.
`expected_s` is stored with each job: it orders the queue and begins the estimate of the time left.
"""

import math
from collections.abc import Iterable, Mapping
from functools import cache
from time import thread_time
from timeit import repeat
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from xsweep.db.jobs import NewJob
from xsweep.evaluator.data.suites import TOKENS_PER_WORD, Size
from xsweep.evaluator.device import bf16_units
from xsweep.orchestrator.forecast.catalog import RUN_QUERIES, Shape, shape_of, size_of
from xsweep.orchestrator.settings import KINDS
from xsweep.trainer.specs import RANKS

TRAINING_SHARE, SCORING_SHARE = 0.30, 0.40
"""Assumed share of a GPU's peak that well-tuned encoders reach."""

CPU_TRAINING_SHARE, CPU_SCORING_SHARE = 0.6, 0.75
"""Share of a core's peak; measured were 62% and 63%, and 62% to 89%."""

LAYER_S, STEP_S = 0.0012, 0.005
"""Assumed time to launch the kernels of one layer's training step, and of the optimiser: small
models on large GPUs wait for these and not for arithmetic."""

EXCHANGE_BYTES_PER_S = {"GPU": 1e11, "CPU": 1e9}
"""Assumed rate at which ranks sum gradients, between GPUs of one node (NVLink) and between CPUs."""

START_S, WARM_S = 15.0, 5.0
"""Start of a worker with its model and candidates; an evaluation in a running worker."""

TOKENISED_PER_S, INDEXED_PER_S = 3_000.0, 5_000.0
"""Documents per CPU second: tokenised, and added to a BM25 index."""

QUESTION_WORDS, ANSWER_TOKENS = 90, 6
"""Words around the passages that a listwise LLM is asked about, tokens of its answer for each."""

QUERY_TOKENS, SPECIAL_TOKENS = 10, 3
"""Tokens of a typed question, and the special tokens of a pair."""

STATE_BYTES = 16
"""Bytes per parameter: fp32 weight, gradient and AdamW's two moments."""

ACTIVATION_BYTES = 34
"""Bytes per token, layer and hidden unit in bf16: Korthikanti et al. 2022, eq. 1, without the
attention matrix (https://arxiv.org/abs/2205.05198); twice as many in fp32."""

CONTEXT_BYTES = 1e9
"""CUDA's context and the allocator's overhead."""

RUN_LINE_BYTES = 14
"""Bytes of one line of a TREC run, gzipped."""


class Device(NamedTuple):
    """One GPU, or one core of a CPU."""

    name: str
    flops_per_s: float
    """Peak of dense matrix products: in bf16, for a core in fp32."""
    memory_bytes: float
    is_gpu: bool = True
    bf16_speedup: float = 1.0
    """Rate of a core in bf16 relative to fp32."""


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
"""Dense bf16 rates of the vendors' data sheets, without sparsity."""

CPU_CORE = Device("CPU", 1.1e11, 0, is_gpu=False)
"""A core with AVX-512 but no bf16 instructions."""


@cache
def this_core() -> Device:
    """A core of this machine, its fp32 peak measured in about 0.1 s, whatever else runs.

    bf16 instructions are taken to double it: 111 and 222 GFLOP/s measured (AMD EPYC, AVX512-BF16).
    """
    left, right = np.ones((1024, 384), np.float32), np.ones((384, 1536), np.float32)
    with threadpool_limits(1):  # CPU time: on a busy machine the clock says up to six times as much
        fastest_s = min(repeat(lambda: left @ right, timer=thread_time, number=1, repeat=10))
    rate = 2 * left.size * right.shape[1] / fastest_s
    return CPU_CORE._replace(flops_per_s=rate, bf16_speedup=2.0 if bf16_units() else 1.0)


Parents = Mapping[str, Mapping[str, Any]]
"""The specs of a job's parents, by role."""


class Work(NamedTuple):
    """The computation of a job."""

    training_flops: float = 0.0
    scoring_flops: float = 0.0
    steps: int = 0
    layers: int = 0
    cpu_s: float = 0.0
    """Seconds on one CPU core, whatever the device."""
    bf16: bool = False
    """A CPU may compute it in bf16 where that is faster."""
    gradient_bytes: float = 0.0
    """Gradients that the ranks of a training sum in each step."""
    asked_tokens: tuple[float, float] = (0.0, 0.0)
    """Tokens that a server reads and writes."""
    pieces: float = 1.0
    """Equal pieces of a batch that ranks share, see `trainer.batching.cut_pieces`."""


def work_of(kind: str, spec: Mapping[str, Any], parents: Parents) -> Work:
    """The work of a job by its spec; an evaluation's model is that of its `run` parent."""
    match kind:
        case "train":
            return _training(spec)
        case "evaluate":
            return _evaluation(spec, parents)
        case "search":
            return Work(cpu_s=1.0)
        case "teach":
            size, _ = size_of(spec["collection"])
            stage = parents.get("candidates", {}).get("first_stage", {})
            queries = RUN_QUERIES.get(stage.get("file", {}).get("md5"), size.queries)
            return _scoring(spec["model"], queries * _depth(parents, 100), size, spec, START_S)
    return _preparation(spec)


def _training(spec: Mapping[str, Any]) -> Work:
    shape, _ = shape_of(spec["backbone"])
    settings, prompt = spec["optimisation"], spec["backbone"].get("prompt")
    size, _ = size_of(spec["collection"])
    pairs = float(training_pairs(spec))
    flops = 0.0
    for collection in validation_collections(spec):
        validated, _ = size_of(collection)
        scored = validations(spec) * validated.queries * spec["validation"]["depth"]
        flops += scored * _pair_flops(shape, validated, spec, prompt)
    pairs_of_step = pairs / settings["steps"]
    passes = 2 if settings.get("lora") else 3  # forward, and the gradients of inputs and weights
    tokens_of_step = pairs_of_step * _pair_tokens(size, spec, prompt)
    micro_batches = tokens_of_step / settings["micro_batch_tokens"]
    return Work(
        gradient_bytes=4.0 * _trained(shape, settings),
        pieces=min(pairs_of_step, RANKS * max(1, math.ceil(micro_batches))),
        training_flops=passes * pairs * _pair_flops(shape, size, spec, prompt),
        scoring_flops=flops,
        steps=settings["steps"],
        layers=shape.layers,
        cpu_s=START_S,
        bf16=_allows_bf16(settings),
    )


def training_pairs(spec: Mapping[str, Any]) -> int:
    """Pairs that a training reads: 10 steps of 4 queries with 7 negatives are 320."""
    teacher, settings = spec["teacher"], spec["optimisation"]
    is_single = not teacher["source"].get("lists", True)
    documents = teacher.get("list_size") or teacher.get("depth") or (1 if is_single else 2)
    if teacher.get("negatives"):
        documents = teacher["negatives"] + 1
    return int(settings["steps"] * settings["batch_queries"] * documents)


def validations(spec: Mapping[str, Any]) -> int:
    """The number of validations of a training."""
    return -(-spec["optimisation"]["steps"] // spec["validation"]["every_steps"])


def validation_collections(spec: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The collections that a training is validated on."""
    validation = spec["validation"]
    return (validation["collection"], *validation.get("further", ())) if validation else ()


def _evaluation(spec: Mapping[str, Any], parents: Parents) -> Work:
    scorer = spec["scorer"]
    if scorer["type"] == "first_stage":
        return Work(cpu_s=1)
    size, _ = size_of(spec["collection"])
    pairs = size.queries * min(spec["depth"] or _depth(parents, 1000), size.documents)
    model = scorer.get("model")
    if scorer["type"] == "run":
        model = {"type": "cross_encoder", "models": [parents["run"]["backbone"]]}
    return _scoring(model, pairs * spec.get("max_passages", 1), size, spec, WARM_S)


def _scoring(
    model: Mapping[str, Any], pairs: float, size: Size, spec: Mapping[str, Any], cpu_s: float
) -> Work:
    """Scoring of pairs by one or several models; a bi-encoder encodes each text once."""
    if listwise := model.get("listwise"):
        windows = listwise["passes"] * pairs / listwise["stride"]
        words = min(size.words, listwise["passage_words"]) * listwise["window"] + QUESTION_WORDS
        read, written = TOKENS_PER_WORD * words, ANSWER_TOKENS * listwise["window"]
        if listwise.get("prompt") == "first":
            written = 1
        if listwise["server"]:
            return Work(cpu_s=cpu_s, asked_tokens=(windows * read, windows * written))
        shape, _ = shape_of(model["models"][0])
        flops = windows * (read + written) * shape.token_flops(round(read))
        return Work(scoring_flops=flops, cpu_s=cpu_s, bf16=_allows_bf16(spec))
    is_bi_encoder = model["type"] == "bi_encoder"
    texts = min(pairs, size.documents + size.queries) if is_bi_encoder else pairs
    flops = sum(
        texts
        * _pair_flops(shape_of(each)[0], size, spec, model.get("prompt") or each.get("prompt"))
        for each in model["models"]
    )
    return Work(scoring_flops=flops, cpu_s=cpu_s, bf16=_allows_bf16(spec))


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
        return Work(scoring_flops=flops, cpu_s=cpu_s, bf16=_allows_bf16(stage))
    return Work(cpu_s=2 + size.queries * spec["depth"] / 500_000)


def _allows_bf16(settings: Mapping[str, Any]) -> bool:
    return settings.get("precision", "fp32") != "fp32"


def _pair_flops(
    shape: Shape, size: Size, spec: Mapping[str, Any], prompt: Mapping[str, Any] | None
) -> float:
    """FLOPs of one pair's forward pass, at mean lengths."""
    tokens = _pair_tokens(size, spec, prompt)
    return tokens * shape.token_flops(round(tokens))


def _pair_tokens(size: Size, spec: Mapping[str, Any], prompt: Mapping[str, Any] | None) -> float:
    asked = TOKENS_PER_WORD * len(" ".join(prompt["template"]).split()) if prompt else 0.0
    query_tokens = min(QUERY_TOKENS, spec["query_tokens"])
    return SPECIAL_TOKENS + asked + query_tokens + size.document_tokens(spec["document_tokens"])


def _depth(parents: Parents, default: int) -> int:
    return int(parents["candidates"]["depth"]) if "candidates" in parents else default


def seconds(work: Work, device: Device, cpus: float, ranks: int = 1) -> float:
    """Seconds of a job on one device, of a training on as many as it has ranks.

    A GPU computes at the assumed share of its peak, but a training step takes no less than the
    launches of its kernels. On a CPU, the job runs on `cpus` cores: 1e13 FLOP of training on a core
    of 1e11 FLOP/s take 167 s, in bf16 at twice the rate 83 s. BERT-Base on an H100, 200,000 steps
    of 64 pairs with 89 tokens: 200,000 x max(9.9 ms, 12 x 1.2 + 5 ms) = 3,880 s. Ranks share
    arithmetic and validation as evenly as the pieces of a batch allow, not launches, and sum
    their gradients in every step.
    """
    cores = max(1.0, cpus)
    exchange_s = 0.0
    if ranks > 1:
        speedup = work.pieces / math.ceil(work.pieces / ranks)
        rate = EXCHANGE_BYTES_PER_S["GPU" if device.is_gpu else "CPU"]
        exchange_s = work.steps * work.gradient_bytes * 2 * (ranks - 1) / ranks / rate
        work = work._replace(
            training_flops=work.training_flops / speedup, scoring_flops=work.scoring_flops / ranks
        )
    if not device.is_gpu:
        rate = device.flops_per_s * cores * (device.bf16_speedup if work.bf16 else 1.0)
        training_s = work.training_flops / (CPU_TRAINING_SHARE * rate)
        scoring_s = work.scoring_flops / (CPU_SCORING_SHARE * rate)
        return training_s + scoring_s + exchange_s + work.cpu_s
    training_s = work.training_flops / (TRAINING_SHARE * device.flops_per_s)
    launching_s = work.steps * (LAYER_S * work.layers + STEP_S) if work.steps else 0.0
    scoring_s = work.scoring_flops / (SCORING_SHARE * device.flops_per_s)
    return max(training_s + exchange_s, launching_s) + scoring_s + work.cpu_s / cores


def expected_s(
    kind: str, spec: Mapping[str, Any], parents: Parents, resources: Mapping[str, Any]
) -> float:
    """Seconds of a job on the GPU type that it asks for, else an H100, or on cores like these.

    Sizes that a rehearsal's spec names are not those of its data: all its jobs count as a start.
    """
    if spec.get("rehearsal"):
        return START_S
    work = work_of(kind, spec, parents)
    if resources.get("gpus"):
        asked = resources.get("labels", {}).get("ray.io/accelerator-type", "")
        device = GPUS.get(asked.upper(), GPUS["H100"])
    else:
        device = this_core() if work.training_flops or work.scoring_flops else CPU_CORE
    ranks = int(resources.get("ranks") or 1)
    return seconds(work, device, float(resources.get("cpus", 1)), ranks)


def rank_speedup(spec: Mapping[str, Any], device: Device, cpus: float, ranks: int) -> float:
    """The time of a training on one device, relative to that on as many as it has ranks."""
    work = work_of("train", spec, {})
    return seconds(work, device, cpus) / seconds(work, device, cpus, ranks)


def gpu_memory_bytes(spec: Mapping[str, Any]) -> float:
    """Peak memory of a training: states of all parameters and one backward pass.

    BERT-Base in bf16 with 16,384 tokens a pass: 108M x 16 + 16,384 x 12 x 768 x 34 bytes and 1 GB
    are 7.9 GB.
    """
    shape, _ = shape_of(spec["backbone"])
    settings = spec["optimisation"]
    width = ACTIVATION_BYTES * (1 if settings["precision"] == "bf16" else 2)
    kept = 2 if settings["gradient_checkpointing"] else shape.layers
    activations = settings["micro_batch_tokens"] * kept * shape.hidden * width
    state = 4 * shape.parameters + (STATE_BYTES - 4) * _trained(shape, settings)
    return state + activations + CONTEXT_BYTES


def _trained(shape: Shape, settings: Mapping[str, Any]) -> float:
    """Parameters that have a gradient: all, or those of adapters of about seven layers each."""
    lora = settings.get("lora")
    return 14.0 * shape.layers * shape.hidden * lora["rank"] if lora else shape.parameters


def disk_bytes(jobs: Iterable[NewJob]) -> dict[str, float]:
    """Size of the results of all jobs in the store, by kind of job."""
    found = dict.fromkeys(KINDS, 0.0)
    for job in jobs:
        found[job.kind] += _result_bytes(job.kind, job.spec)
    return found


def _result_bytes(kind: str, spec: Mapping[str, Any]) -> float:
    if kind == "train":
        return 4.0 * shape_of(spec["backbone"])[0].parameters
    if kind == "search":
        return 0.0  # links to the winner's files
    size, _ = size_of(spec["documents" if spec.get("type") == "tokens" else "collection"])
    if spec.get("type") == "tokens":
        shape, _ = shape_of(spec["tokenizer"])
        tokens = min(size.words * TOKENS_PER_WORD, float(spec["max_tokens"]))
        return size.documents * tokens * (2 if shape.vocabulary <= 65_536 else 4)
    depth = min(spec.get("depth") or 1000, size.documents)
    return float(RUN_LINE_BYTES * size.queries * depth)
