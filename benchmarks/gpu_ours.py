"""What `gpu.py` measures of xsweep; as a program, a training in a process of its own.

python benchmarks/gpu_ours.py JOB.json OUT [KILLED_AT_STEP]
"""

import argparse
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_models import LISTS, QUERY_TOKENS, Pairs, World, read_lists
from measuring import product_flops, product_shapes, resident_bytes
from transformers import PreTrainedModel

from evaluator.pairs import PairEncoder
from evaluator.scoring import score_pairs
from evaluator.unpadded import has_unpadded
from trainer.batches import Assembler
from trainer.engines import open_engine
from trainer.gradients import Gradients
from trainer.loop import attention
from trainer.memory import keep_freed_memory
from trainer.scorer import Scorer
from trainer.specs import TrainSpec
from trainer.teachers import Sample

Figures = dict[str, Any]


def layouts(model: PreTrainedModel) -> tuple[str, ...]:
    """The ways that a model's family can run."""
    return ("padded", "unpadded") if has_unpadded(model) else ("padded",)


def forget(device: torch.device) -> None:
    """Gives the device's memory back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def wait(device: torch.device) -> float:
    """The time, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def peak_memory(device: torch.device, figures: Figures) -> Iterator[None]:
    """Notes the peak of device memory, or of resident memory on a CPU, of the block."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")
    yield
    peak = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resident_bytes("VmHWM")
    )
    figures["peak_mib"] = round(peak / 2**20)


def products(model: PreTrainedModel, device: torch.device) -> Figures:
    """The best rate of bare bf16 products of a model's shapes, in FLOP per second."""
    tokens = 16384 if device.type == "cuda" else 1024
    best = 0.0
    for rows, columns in product_shapes(model):
        left = torch.randn(tokens, rows, dtype=torch.bfloat16, device=device)
        right = torch.randn(rows, columns, dtype=torch.bfloat16, device=device)
        for _ in range(10):
            started = wait(device)
            for _ in range(10 if device.type == "cuda" else 1):
                left @ right
            spent_s = (wait(device) - started) / (10 if device.type == "cuda" else 1)
            best = max(best, 2 * tokens * rows * columns / spent_s)
    return {"bf16_flops": best}


def score(
    model: PreTrainedModel,
    encoder: PairEncoder,
    pairs: Pairs,
    layout: str,
    options: argparse.Namespace,
    rate: float | None,
) -> Figures:
    """Pairs per second in bf16."""

    def run(count: int) -> tuple[float, float]:
        started = wait(options.device)
        scored = score_pairs(
            model,
            encoder,
            pairs.ids[:count],
            query_tokens=QUERY_TOKENS,
            document_tokens=pairs.document_tokens,
            batch_tokens=65536 if options.device.type == "cuda" else 4096,
            precision="bf16",
            layout=layout,  # type: ignore[arg-type]
            device=options.device,
        )
        return wait(options.device) - started, scored.padding_waste

    few = min(4 if options.device.type == "cpu" else 256, len(pairs.ids))
    run(few)
    count = min(len(pairs.ids), max(few, int(few / run(few)[0] * options.seconds)))
    figures: Figures = {}
    done = spent_s = 0.0
    with peak_memory(options.device, figures):
        while spent_s < options.seconds:
            seconds, waste = run(count)
            done, spent_s = done + count, spent_s + seconds
    lengths = encoder.lengths(
        *(np.array([len(ids) for ids in side]) for side in zip(*pairs.ids[:count], strict=True)),
        QUERY_TOKENS,
        pairs.document_tokens,
    )
    flops = product_flops(model, lengths, first_token_only=layout == "unpadded") / count
    return {
        "pairs_per_s": round(done / spent_s, 2),
        "of_products": rate and round(flops * done / spent_s / rate, 3),
        "padding": round(waste, 4),
        "mean_tokens": round(float(lengths.mean()), 1),
        **figures,
    }


def train(
    world: World,
    shape: str,
    objective: str,
    layout: str,
    engine: str,
    options: argparse.Namespace,
    rate: float | None,
) -> Figures:
    """Pairs per second of whole steps in bf16, dropout on."""
    on_gpu = options.device.type == "cuda"
    model, encoder = world.model(shape)
    model.to(options.device)
    if not on_gpu:
        keep_freed_memory()
    lists, batch = world.lists[objective], options.batch_queries[objective]
    spec = training_spec(
        world.folder(shape),
        objective,
        batch_queries=batch,
        engine="plain" if engine == "plain" else "deepspeed",
        zero_stage=0 if engine == "plain" else 1,
        micro_batch_tokens=32768 if on_gpu else 16384,
        forward_tokens=16384 if on_gpu else 2048,
        layout=layout,
    )
    documents = {
        f"{query}-{place}": ids
        for query, found in enumerate(lists.documents)
        for place, ids in enumerate(found)
    }
    queries = {f"q{number}": ids for number, ids in enumerate(lists.queries)}
    assembler = Assembler(spec, encoder, documents, queries, packed=layout == "unpadded")  # type: ignore[arg-type]
    size = LISTS[objective]
    targets = np.zeros(size, dtype=np.float32)
    targets[0] = 1
    if objective == "distill_ranknet":
        targets = np.arange(size, 0, -1, dtype=np.float32)

    def samples(step: int) -> list[Sample]:
        numbers = [(step * batch + place) % len(lists.queries) for place in range(batch)]
        return [
            Sample(f"q{n}", tuple(f"{n}-{place}" for place in range(size)), targets)
            for n in numbers
        ]

    scorer = Scorer(model.train(), bf16=True)
    figures: Figures = {}
    steps = tokens = slots = 0
    usual = "eager" if not on_gpu else model.config._attn_implementation
    with attention(model, usual), open_engine(scorer, spec.optimisation) as opened:
        gradients = Gradients(spec, opened, scorer, assembler)
        for step in range(2 if on_gpu else 1):
            gradients.add(samples(step), step)
            opened.step(1e-5)
        with peak_memory(options.device, figures):
            started = wait(options.device)
            while wait(options.device) - started < options.seconds:
                work = gradients.add(samples(2 + steps), 2 + steps)
                opened.step(1e-5)
                steps, tokens, slots = steps + 1, tokens + work.tokens, slots + work.slots
            spent_s = wait(options.device) - started
    pairs = steps * batch * size
    lengths = np.full(pairs, tokens / pairs)
    flops = 3 * product_flops(model, lengths, first_token_only=layout == "unpadded")
    return {
        "pairs_per_s": round(pairs / spent_s, 2),
        "of_products": rate and round(flops / spent_s / rate, 3),
        "padding": round(1 - tokens / slots, 4),
        "mean_tokens": round(tokens / pairs, 1),
        "steps": steps,
        **figures,
    }


def training_spec(folder: Path, objective: str, **optimisation: Any) -> TrainSpec:
    """A training of lists; its teacher and collection are not opened here."""
    teachers = {
        "infonce": {"signal": "labels", "source": {"type": "candidates"}, "negatives": 7},
        "distill_ranknet": {"signal": "ranking", "source": {"type": "teach"}, "list_size": 50},
    }
    return TrainSpec.model_validate(
        {
            "backbone": {"folder": str(folder)},
            "objective": {"name": objective},
            "teacher": teachers[objective],
            "collection": {"name": "texts", "source": "apidocs", "split": "train"},
            "optimisation": {"steps": 10**6, "lr": 1e-5, "precision": "bf16"} | optimisation,
            "seed": 1,
            "query_tokens": QUERY_TOKENS,
            "document_tokens": 256,
        }
    )


def write_job(home: Path, options: argparse.Namespace, **optimisation: Any) -> Path:
    """A training of MiniLM's shape on triples in files, as a job that the trainer runs."""
    from evaluator.tokens import TokenStore

    world = World(home, argparse.Namespace(data=options.data, layers=options.layers, pairs=2))
    triples = home / "triples"
    if not triples.exists():
        (triples / "tokens").mkdir(parents=True)
        queries, _ = read_lists(options.data)
        clean = [(" ".join(q.split()), [" ".join(d.split()) for d in ds]) for q, ds in queries[:40]]
        documents = [
            (f"d{n}-{place}", text)
            for n, (_, ds) in enumerate(clean)
            for place, text in enumerate(ds)
        ]
        content = {
            "documents.tsv": [f"{name}\t{text}" for name, text in documents],
            "queries.tsv": [f"q{n}\t{query}" for n, (query, _) in enumerate(clean)],
            "qrels.txt": [f"q{n} 0 d{n}-0 1" for n in range(len(clean))],
            "triples.tsv": [
                f"q{n}\td{n}-0\td{n}-{other}" for n, (_, ds) in enumerate(clean) for other in (1, 9)
            ],
        }
        for name, lines in content.items():
            (triples / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        TokenStore.build(triples / "tokens", documents, world.tokenizer, 256)
    files = {
        name: {"path": str(triples / f"{name}{suffix}")}
        for name, suffix in (("documents", ".tsv"), ("queries", ".tsv"), ("qrels", ".txt"))
    }
    source = {"type": "triples", "file": {"path": str(triples / "triples.tsv")}}
    spec = {
        "backbone": {"folder": str(world.folder("minilm"))},
        "objective": {"name": "bce"},
        "teacher": {"signal": "labels", "source": source},
        "collection": {"name": "texts", "source": "files", **files},
        "optimisation": {"lr": 5e-5, "precision": "bf16", "engine": "plain"} | optimisation,
        "seed": 1,
        "document_tokens": 256,
    }
    job = home / "job.json"
    job.write_text(json.dumps({"spec": spec, "inputs": {"tokens": str(triples / "tokens")}}))
    return job


def run(job: Path, out: Path, options: argparse.Namespace, *more: str) -> int:
    """The exit code of a training in a process of its own."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if options.device.type == "cpu" else {}
    command = [sys.executable, __file__, str(job), str(out), *more]
    return subprocess.run(command, env=os.environ | hidden, stderr=subprocess.DEVNULL).returncode


def resume(home: Path, options: argparse.Namespace) -> Figures:
    """Whether a training that was killed and continued ends with the weights of another."""
    few = {"steps": 6, "batch_queries": 4 if options.device.type == "cpu" else 64}
    job = write_job(home, options, **few, checkpoint_every_steps=2)
    codes = [
        run(job, home / "undisturbed", options),
        run(job, home / "killed", options, "5"),
        run(job, home / "killed", options),
    ]
    digests = [
        hashlib.sha256((home / name / "model/model.safetensors").read_bytes()).hexdigest()
        for name in ("undisturbed", "killed")
    ]
    return {"exit_codes": codes, "digests": digests, "equal": digests[0] == digests[1]}


def capped(home: Path, options: argparse.Namespace) -> Figures:
    """How a training goes on where its activations exceed the memory that it may use."""
    pairs = 64 if options.device.type == "cpu" else 2048
    job = write_job(home, options, steps=2, batch_queries=pairs // 2, micro_batch_tokens=10**6)
    layers = options.layers or 6
    tokens = 60 * pairs
    room = int(0.4 * tokens * layers * 20 * 384 * (4 if options.device.type == "cpu" else 3))
    code = run(job, home / "capped", options, "--room", str(room))
    figures: Figures = {"exit_code": code, "room_mib": room >> 20, "pairs_per_step": pairs}
    if code == 0:
        summary = json.loads((home / "capped" / "summary.json").read_text())
        figures |= {name: summary[name] for name in ("halved_budgets", "final_loss", "steps")}
    return figures


def cap_memory(room_bytes: int) -> None:
    """Lets this process use so much more than weights, gradients and moments take."""
    kept = 8 * 23_000_000 * 4
    if torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((kept + room_bytes) / whole)
    else:
        most = resident_virtual_bytes() + kept + room_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def resident_virtual_bytes() -> int:
    """What this process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> None:
    """Runs a training, kills itself after a step or caps its memory where asked to."""
    from trainer.train import run_job

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("killed_at", type=int, nargs="?")
    parser.add_argument("--room", type=int, help="bytes above the model's own")
    options = parser.parse_args()
    job = json.loads(options.job.read_text())

    def report(done: int, total: int, **_: object) -> None:
        if done == options.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    if options.room:
        cap_memory(options.room)
    inputs = {role: Path(folder) for role, folder in job["inputs"].items()}
    run_job("train", job["spec"], inputs, options.out, report, resume_from=[options.out])


if __name__ == "__main__":
    main()
