"""Pairs per second of scoring and of training steps, by every layout and engine."""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_models import LISTS, QUERY_TOKENS, Lists, Pairs, World
from gpu_report import Figures
from measuring import memory_bytes, product_flops, product_shapes
from transformers import PreTrainedModel

from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.scoring import score_pairs
from xsweep.evaluator.specs import ScoringSpec
from xsweep.evaluator.varlen.encoders import has_unpadded
from xsweep.trainer.batching import Assembler
from xsweep.trainer.cpu_kernels import keep_freed_memory
from xsweep.trainer.engines import open_engine
from xsweep.trainer.forward import Scorer, attention
from xsweep.trainer.gradients import Budgets, Gradients
from xsweep.trainer.specs import TrainSpec
from xsweep.trainer.teachers import Sample

TEACHERS: dict[str, dict[str, Any]] = {
    "infonce": {"signal": "labels", "source": {"type": "candidates"}, "negatives": 7},
    "distill_ranknet": {"signal": "ranking", "source": {"type": "teach"}, "list_size": 50},
}
"""Where the documents of a query would be from; here they are made, see `_samples`."""
NOTHING = nullcontext()


class Way(NamedTuple):
    """One way of training."""

    objective: str
    layout: str
    engine: str


def layouts(model: PreTrainedModel) -> tuple[str, ...]:
    """The ways that a model's family can run."""
    return ("padded", "unpadded") if has_unpadded(model) else ("padded",)


def ways(model: PreTrainedModel, objectives: Sequence[str]) -> list[Way]:
    """All ways of training a model; ZeRO-1 is compared where passes are padded."""
    return [
        Way(objective, layout, engine)
        for objective in objectives
        for layout in layouts(model)
        for engine in (("plain", "zero-1") if layout == "padded" else ("plain",))
    ]


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given: of wall time.

    On a CPU, which may have other work too, of this process's CPU time.
    """
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def peak_memory(device: torch.device, figures: Figures) -> Iterator[None]:
    """Notes the peak of device memory, or of resident memory on a CPU, of the block."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")
    yield
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else memory_bytes("VmHWM")
    figures["peak_mib"] = round(peak / 2**20)


def products(model: PreTrainedModel, options: argparse.Namespace) -> Figures:
    """The best rate of bare products of a model's shapes, in FLOP per second."""
    device = options.device
    tokens, at_once = (16384, 10) if device.type == "cuda" else (1024, 1)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    best = 0.0
    for rows, columns in product_shapes(model):
        left = torch.randn(tokens, rows, dtype=dtype, device=device)
        right = torch.randn(rows, columns, dtype=dtype, device=device)
        for _ in range(10):
            started = clock(device)
            for _ in range(at_once):
                left @ right
            spent_s = (clock(device) - started) / at_once
            best = max(best, 2 * tokens * rows * columns / spent_s)
    return {"flop_per_s": best}


def score(
    world: World,
    model: PreTrainedModel,
    encoder: PairEncoder,
    pairs: Pairs,
    layout: str,
    options: argparse.Namespace,
    product_rate: float | None,
    *,
    around: AbstractContextManager = NOTHING,
) -> Figures:
    """Pairs per second of scoring from token ids, which xsweep keeps, and from texts.

    What is timed runs inside of `around`.
    """

    def run(count: int) -> tuple[float, float]:
        started = clock(options.device)
        scored = score_pairs(
            model,
            encoder,
            pairs.ids[:count],
            ScoringSpec(
                query_tokens=QUERY_TOKENS,
                document_tokens=pairs.document_tokens,
                precision=options.precision,
                layout=layout,  # type: ignore[arg-type]
            ),
            device=options.device,
        )
        return clock(options.device) - started, scored.padding_waste

    few = min(4 if options.device.type == "cpu" else 256, len(pairs.ids))
    run(few)
    count = min(len(pairs.ids), max(few, int(few / run(few)[0] * options.seconds)))
    figures: Figures = {}
    done, spent_s, waste = 0, 0.0, 0.0
    with around, peak_memory(options.device, figures):
        while spent_s < options.seconds:
            seconds, waste = run(count)
            done, spent_s = done + count, spent_s + seconds
    lengths = encoder.lengths(
        *(np.array([len(ids) for ids in side]) for side in zip(*pairs.ids[:count], strict=True)),
        QUERY_TOKENS,
        pairs.document_tokens,
    )
    flops = product_flops(model, lengths, first_token_only=layout == "unpadded") / count
    started = clock(options.device)
    world.tokenized(pairs.texts[:count], pairs.tokens)
    tokenising_s = (clock(options.device) - started) * done / count
    return {
        "pairs_per_s": round(done / spent_s, 2),
        "from_text_pairs_per_s": round(done / (spent_s + tokenising_s), 2),
        "of_products": product_rate and round(flops * done / spent_s / product_rate, 3),
        "padding": round(waste, 4),
        "mean_tokens": round(float(lengths.mean()), 1),
        **figures,
    }


def train(
    world: World,
    shape: str,
    way: Way,
    options: argparse.Namespace,
    product_rate: float | None,
    *,
    around: AbstractContextManager = NOTHING,
) -> Figures:
    """Pairs per second of whole steps, dropout on; what is timed runs inside of `around`."""
    on_gpu = options.device.type == "cuda"
    model, encoder = world.model(shape)
    model.to(options.device)
    if not on_gpu:
        keep_freed_memory()
    lists, batch = world.lists[way.objective], options.batch_queries[way.objective]
    spec = _spec(world.folder(shape), way, batch, options)
    packed = way.layout == "unpadded"
    assembler = _assembler(spec, encoder, lists, packed=packed, device=options.device)
    samples = _samples(way.objective, lists, batch)
    scorer = Scorer(model.train(), bf16=options.precision == "bf16")
    # As the training loop has it, see `xsweep.trainer.loop`.
    usual = model.config._attn_implementation if on_gpu else "eager"
    figures: Figures = {}
    steps = tokens = slots = 0
    with attention(model, usual), open_engine(scorer, spec.optimisation) as engine:
        budgets = Budgets(spec.optimisation.micro_batch_tokens, world.folder(shape))
        gradients = Gradients(spec, engine, scorer, assembler, budgets)
        warm = 2 if on_gpu else 1
        for step in range(warm):
            gradients.add(samples(step), step)
            engine.step(1e-5)
        with around, peak_memory(options.device, figures):
            started = clock(options.device)
            while clock(options.device) - started < options.seconds:
                work = gradients.add(samples(warm + steps), warm + steps)
                engine.step(1e-5)
                steps, tokens, slots = steps + 1, tokens + work.tokens, slots + work.slots
            spent_s = clock(options.device) - started
    pairs = steps * batch * LISTS[way.objective]
    flops = 3 * product_flops(
        model, np.full(pairs, tokens / pairs), first_token_only=way.layout == "unpadded"
    )
    return {
        "pairs_per_s": round(pairs / spent_s, 2),
        "of_products": product_rate and round(flops / spent_s / product_rate, 3),
        "padding": round(1 - tokens / slots, 4),
        "mean_tokens": round(tokens / pairs, 1),
        "steps": steps,
        **figures,
    }


def _spec(folder: Path, way: Way, batch: int, options: argparse.Namespace) -> TrainSpec:
    """The training whose steps are measured; its teacher and collection are never opened."""
    on_gpu = options.device.type == "cuda"
    optimisation = {
        "steps": 10**6,
        "lr": 1e-5,
        "precision": options.precision,
        "batch_queries": batch,
        "engine": "plain" if way.engine == "plain" else "deepspeed",
        "zero_stage": 0 if way.engine == "plain" else 1,
        "micro_batch_tokens": 32768 if on_gpu else 16384,
        "layout": way.layout,
    }
    return TrainSpec.model_validate(
        {
            "backbone": {"folder": str(folder)},
            "objective": {"name": way.objective},
            "teacher": TEACHERS[way.objective],
            "collection": {"name": "texts", "source": "apidocs", "split": "train"},
            "optimisation": optimisation,
            "seed": 1,
            "query_tokens": QUERY_TOKENS,
            "document_tokens": 256,
        }
    )


def _assembler(
    spec: TrainSpec, encoder: PairEncoder, lists: Lists, *, packed: bool, device: torch.device
) -> Assembler:
    queries = {f"q{number}": ids for number, ids in enumerate(lists.queries)}
    documents = {
        f"{query}-{place}": ids
        for query, found in enumerate(lists.documents)
        for place, ids in enumerate(found)
    }
    return Assembler(spec, encoder, documents, queries, packed=packed, device=device)  # type: ignore[arg-type]


def _samples(objective: str, lists: Lists, batch: int) -> Callable[[int], list[Sample]]:
    """The queries of a step: the lists in their order, the first document the best."""
    size = LISTS[objective]
    targets = np.zeros(size, dtype=np.float32)
    targets[0] = 1
    if objective == "distill_ranknet":
        targets = np.arange(size, 0, -1, dtype=np.float32)

    def samples(step: int) -> list[Sample]:
        numbers = [(step * batch + place) % len(lists.queries) for place in range(batch)]
        return [
            Sample(f"q{n}", tuple(f"{n}-{place}" for place in range(size)), targets, targets)
            for n in numbers
        ]

    return samples
