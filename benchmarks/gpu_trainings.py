"""Whole trainings in processes of their own: one that is killed, one that runs out of memory.

    python benchmarks/gpu_trainings.py JOB.json OUT [OUT] [--kill-after STEP | --cap]

As a program it trains what JOB.json says into each folder OUT. It ends itself with SIGKILL after a
step, or caps the memory of the second training, where asked to, and says in JOB.memory.json what
the first one took and what the second one has.
"""

import argparse
import gc
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_models import QUERY_TOKENS, World
from gpu_report import Figures
from measuring import memory_bytes

from xsweep.evaluator.device import release_freed_memory
from xsweep.evaluator.models.token_store import TokenStore
from xsweep.trainer.checkpoint import list_checkpoints
from xsweep.trainer.train import run_job

STEPS, KILLED_AFTER, CHECKPOINT_EVERY = 6, 5, 2
"""Of the training that is killed: one step after its second checkpoint."""

ON_A_CPU = {
    "CUDA_VISIBLE_DEVICES": "",
    # What is freed leaves the process, as on a GPU it goes back to PyTorch's pool: under a cap of
    # the address space nothing else makes room for smaller micro-batches. A limit, however large,
    # keeps the trainer from telling glibc otherwise.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}
REFUSES_MEMORY = {"ATEN_CPU_CAPABILITY": "avx2"}
"""Environment of a CPU under a cap: oneDNN's AVX512 kernels crash where memory is refused."""
NO_CAP_BYTES = 2**46
"""A limit of the address space that no training reaches."""


def resume(home: Path, world: World, options: argparse.Namespace) -> Figures:
    """Whether a training that was killed and continued ends with the weights of another."""
    few = {"steps": STEPS, "batch_queries": 4 if options.device.type == "cpu" else 64}
    job = write_job(home, world, options, **few, checkpoint_every_steps=CHECKPOINT_EVERY)
    undisturbed, killed = home / "undisturbed", home / "killed"
    kill = ("--kill-after", str(KILLED_AFTER))
    run(job, [killed], options, *kill, ends_with=-signal.SIGKILL)
    newest, *_ = list_checkpoints([killed / "checkpoints"])
    run(job, [killed, undisturbed], options)
    digests = [_digest(undisturbed), _digest(killed)]
    return {
        "killed_after_step": KILLED_AFTER,
        "continued_from": newest.name,
        "digests": digests,
        "equal": digests[0] == digests[1],
    }


def capped(home: Path, world: World, options: argparse.Namespace) -> Figures:
    """How a training goes on with half of the memory that its micro-batches take.

    A first training without a cap says what they take: what its second step takes at most, less the
    gradient. Smaller micro-batches need a second gradient, which is added to the first. The first
    step is never capped: it loads code, starts threads and makes the moments, which no smaller
    micro-batch makes smaller. Both trainings compute the same two steps without dropout, so their
    losses agree. On a CPU both compute in fp32 without oneDNN's blocked weights.
    """
    on_cpu = options.device.type == "cpu"
    pairs = 128 if on_cpu else 2048
    whole = {"steps": 2, "batch_queries": pairs // 2, "micro_batch_tokens": 10**6}
    whole["precision"] = "fp32" if on_cpu else options.precision
    job = write_job(home, world, options, **whole, dropout=False)
    outs = [home / "roomy", home / "capped"]
    run(job, outs, options, "--cap", **REFUSES_MEMORY)
    memory = json.loads(job.with_suffix(".memory.json").read_text())
    roomy, tight = (json.loads((out / "summary.json").read_text()) for out in outs)
    return {
        "pairs_per_step": pairs,
        **{f"{name}_mib": size >> 20 for name, size in memory.items()},
        "steps": tight["steps"],
        "halved_budgets": tight["halved_budgets"],
        "final_losses": [roomy["final_loss"], tight["final_loss"]],
    }


def write_job(home: Path, world: World, options: argparse.Namespace, **optimisation: Any) -> Path:
    """A training on triples in files, of the first shape asked for, as the trainer reads it."""
    triples = home / "triples"
    if not triples.exists():
        _write_triples(triples, world)
    files = {
        name: {"path": str(triples / f"{name}{suffix}")}
        for name, suffix in (("documents", ".tsv"), ("queries", ".tsv"), ("qrels", ".txt"))
    }
    source = {"type": "triples", "file": {"path": str(triples / "triples.tsv")}}
    settings = {"lr": 5e-5, "precision": options.precision, "engine": "plain"}
    spec = {
        "backbone": {"folder": str(world.folder(options.shapes[0]))},
        "objective": {"name": "bce"},
        "teacher": {"signal": "labels", "source": source},
        "collection": {"name": "texts", "source": "files", **files},
        "optimisation": settings | optimisation,
        "seed": 1,
        "query_tokens": QUERY_TOKENS,
        "document_tokens": 256,
    }
    job = home / "job.json"
    job.write_text(json.dumps({"spec": spec, "inputs": {"tokens": str(triples / "tokens")}}))
    return job


def _write_triples(folder: Path, world: World) -> None:
    """The first document of each list is the relevant one, against each of the next eight."""
    (folder / "tokens").mkdir(parents=True)
    lists = [
        (" ".join(query.split()), [" ".join(text.split()) for text in documents])
        for query, documents in world.queries[:40]
    ]
    documents = [
        (f"d{n}-{place}", text)
        for n, (_, texts) in enumerate(lists)
        for place, text in enumerate(texts)
    ]
    content = {
        "documents.tsv": [f"{name}\t{text}" for name, text in documents],
        "queries.tsv": [f"q{n}\t{query}" for n, (query, _) in enumerate(lists)],
        "qrels.txt": [f"q{n} 0 d{n}-0 1" for n in range(len(lists))],
        "triples.tsv": [
            f"q{n}\td{n}-0\td{n}-{other}" for n in range(len(lists)) for other in range(1, 9)
        ],
    }
    for name, lines in content.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    TokenStore.build(folder / "tokens", documents, world.tokenizer, 256)


def run(
    job: Path,
    outs: Sequence[Path],
    options: argparse.Namespace,
    *more: str,
    ends_with: int = 0,
    **environment: str,
) -> None:
    """Trainings in a process of their own. Raises RuntimeError if it ends in another way.

    `environment` holds on a CPU only.
    """
    done = subprocess.run(
        [sys.executable, __file__, job, *outs, *more],
        env=os.environ | (ON_A_CPU | environment if options.device.type == "cpu" else {}),
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode != ends_with:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"the training {outs[0].name} ended with {done.returncode}: {reason}")


def _digest(out: Path) -> str:
    return hashlib.sha256((out / "model/model.safetensors").read_bytes()).hexdigest()


def taken_bytes() -> int:
    """Memory of the GPU that PyTorch needs now, or the address space of this process."""
    release_freed_memory()
    if torch.cuda.is_available():
        return torch.cuda.memory_reserved()
    return memory_bytes("VmSize")


def most_taken_bytes() -> int:
    """The most of it until now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return memory_bytes("VmPeak")


def cap_memory(most: int) -> None:
    """Lets this process take at most so many bytes."""
    if torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / whole))
    else:
        resource.setrlimit(resource.RLIMIT_AS, (most, NO_CAP_BYTES))


def train(job: dict[str, Any], out: Path, kill_after: int | None = None, room: int = 0) -> int:
    """Runs a training; the bytes that it took on top of those after its first step.

    `room` caps these.
    """
    before = 0

    def report(done: int, total: int, **_: object) -> None:
        nonlocal before
        if done == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if done == 1:
            before = taken_bytes()
            if room:
                cap_memory(before + room)
        elif done == total and room:
            cap_memory(NO_CAP_BYTES)  # no micro-batch makes writing the model smaller

    inputs = {role: Path(folder) for role, folder in job["inputs"].items()}
    run_job("train", job["spec"], inputs, out, report, resume_from=[out])
    return most_taken_bytes() - before


def main() -> None:
    """Runs trainings; kills the first or caps the second where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("outs", type=Path, nargs="+")
    parser.add_argument("--kill-after", type=int, metavar="STEP")
    parser.add_argument("--cap", action="store_true", help="the memory of the second")
    options = parser.parse_args()
    job = json.loads(options.job.read_text())
    if not torch.cuda.is_available():
        resource.setrlimit(resource.RLIMIT_AS, (NO_CAP_BYTES, NO_CAP_BYTES))
    first, *others = options.outs
    taken = train(job, first, options.kill_after)
    room = 0
    if options.cap:
        gc.collect()
        weights = (Path(job["spec"]["backbone"]["folder"]) / "model.safetensors").stat().st_size
        activations = taken - weights
        room = 2 * weights + activations // 2
        if room > taken:
            raise ValueError(
                "gradients take more than micro-batches: this shape has too few layers"
            )
        memory = {"taken": taken, "activations": activations, "room": room}
        options.job.with_suffix(".memory.json").write_text(json.dumps(memory))
    for out in others:
        train(job, out, room=room)


if __name__ == "__main__":
    main()
