"""Scoring and training on one device beside sentence-transformers: one command, one JSON.

    python benchmarks/gpu.py [DATA] [--device cuda] [--seconds 4] [--limit 520]
        [--shapes minilm bert-base modernbert deberta-v3] [--layers N] [--sections scoring ...]
        [--sentence-transformers PYTHON] [--out FILE]

Without Ray and database. DATA is a folder with `trec-dl-passage/`, whose texts are scored and
trained on; without it the texts are those of the built-in collection. Models have random weights
in the shapes of MiniLM-L6, BERT-base, ModernBERT-base and DeBERTa-v3-base (all with MiniLM's
tokenizer). Every figure is measured for `--seconds`; what would begin after `--limit` seconds is
left out and says so, and what fails has its error in place of figures.

- scoring: pairs/s at real lengths (at most 288 tokens) and at length 512; `of_products` is the
  share of the rate that bare bf16 products of the model's own shapes reach in the same run
- training: pairs/s with infonce (lists of 8) and distill_ranknet (lists of 50), dropout on
- peers: sentence-transformers' `predict` and CrossEncoderTrainer in bf16, in the environment whose
  Python is named (default: this one), on the same texts
- resume: SHA-256 of the weights of a training, and of one killed with SIGKILL and continued
- memory: what a training does under a cap that its micro-batches exceed
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gpu_models
import gpu_ours
import torch

from evaluator.provenance import hardware

SECTIONS = ("scoring", "training", "peers", "resume", "memory")
PACKAGES = ("torch", "transformers", "deepspeed", "sentence-transformers", "flash-attn")
Figures = dict[str, Any]


class Report:
    """Figures by section and row; keeps to the time limit and survives what fails."""

    def __init__(self, limit_s: float) -> None:
        self.started, self.limit_s = time.perf_counter(), limit_s
        self.rows: dict[str, dict[str, Figures]] = {}

    def left_s(self) -> float:
        """Seconds until the limit."""
        return self.limit_s - (time.perf_counter() - self.started)

    def add(self, section: str, row: str, measure: Callable[[], Figures]) -> Figures:
        """Measures one row and prints it."""
        if self.left_s() <= 0:
            figures: Figures = {"left_out": "the time limit was reached"}
        else:
            try:
                figures = measure()
            except Exception as error:  # one failing row must not cost the others
                figures = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        self.rows.setdefault(section, {})[row] = figures
        print(f"{section:10} {row:52} {json.dumps(figures)}", flush=True)
        return figures


def about(device: torch.device) -> Figures:
    """The device, its settings and the versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    settings: Figures = {"float32_matmul_precision": torch.get_float32_matmul_precision()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        settings |= {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.type,
        "threads": torch.get_num_threads(),
        **settings,
        **hardware(),
        "python": platform.python_version(),
        "versions": versions,
    }


def measure_ours(report: Report, options: argparse.Namespace, world: gpu_models.World) -> None:
    """Scoring and training by every layout and engine."""
    for shape in options.shapes:
        model, encoder = world.model(shape)
        rate = report.add(
            "products", shape, lambda m=model: gpu_ours.products(m, options.device)
        ).get("bf16_flops")
        if "scoring" in options.sections:
            for length, pairs in world.pairs.items():
                for layout in gpu_ours.layouts(model):
                    report.add(
                        "scoring",
                        f"{shape}, {length}, {layout}",
                        lambda m=model, p=pairs, w=layout, r=rate, e=encoder: gpu_ours.score(
                            m, e, p, w, options, r
                        ),
                    )
        if "training" in options.sections:
            for objective in ("infonce", "distill_ranknet"):
                for layout in gpu_ours.layouts(model):
                    for engine in ("plain", "zero-1") if layout == "padded" else ("plain",):
                        report.add(
                            "training",
                            f"{shape}, {objective}, {layout}, {engine}",
                            lambda s=shape, o=objective, w=layout, g=engine, r=rate: gpu_ours.train(
                                world, s, o, w, g, options, r
                            ),
                        )
        del model
        gpu_ours.forget(options.device)


def measure_peers(report: Report, options: argparse.Namespace, world: gpu_models.World) -> None:
    """sentence-transformers on the same texts, one process for all rows."""
    job = {
        "device": options.device.type,
        "seconds": options.seconds,
        "limit_s": report.left_s(),
        "models": {shape: str(world.folder(shape)) for shape in options.shapes},
        "pairs": {length: pairs.texts for length, pairs in world.pairs.items()},
        "lists": {name: lists.texts for name, lists in world.lists.items()},
        "tokens": {length: pairs.tokens for length, pairs in world.pairs.items()},
        "batch_queries": {name: options.batch_queries[name] for name in world.lists},
    }
    if report.left_s() <= 0:
        report.add("peers", "all", dict)
        return
    program = Path(__file__).with_name("gpu_peers.py")
    with subprocess.Popen(
        [options.sentence_transformers, program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as peers:
        assert peers.stdin
        assert peers.stdout
        peers.stdin.write(json.dumps(job))
        peers.stdin.close()
        for line in peers.stdout:
            if line.startswith("{"):
                row = json.loads(line)
                report.add("peers", row.pop("row"), lambda r=row: r)
    if peers.returncode:
        report.add("peers", "process", lambda: {"error": f"ended with {peers.returncode}"})


def ratios(rows: dict[str, dict[str, Figures]]) -> Figures:
    """Our best row by the peer's, for every model and kind of work that both have."""
    found = {}
    for section, name in (("scoring", "predict"), ("training", "trainer")):
        for row, figures in rows.get("peers", {}).items():
            if not row.startswith(f"{name}: ") or "pairs_per_s" not in figures:
                continue
            work = row.removeprefix(f"{name}: ")
            ours = [
                our["pairs_per_s"]
                for key, our in rows.get(section, {}).items()
                if key.startswith(f"{work}, ") and "pairs_per_s" in our
            ]
            if ours:
                found[f"{section}: {work}"] = round(max(ours) / figures["pairs_per_s"], 2)
    return found


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each figure")
    parser.add_argument("--limit", type=float, default=520.0, help="seconds for the whole")
    parser.add_argument("--shapes", nargs="+", choices=gpu_models.SHAPES, default=gpu_models.SHAPES)
    parser.add_argument("--layers", type=int, help="fewer layers than the shapes have")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--pairs", type=int, help="scored at a time (4,096; on a CPU 32)")
    parser.add_argument("--sentence-transformers", default=sys.executable)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.device = torch.device(options.device)
    on_cpu = options.device.type == "cpu"
    options.pairs = options.pairs or (32 if on_cpu else 4096)
    options.batch_queries = (
        {"infonce": 1, "distill_ranknet": 1} if on_cpu else {"infonce": 16, "distill_ranknet": 4}
    )
    torch.set_float32_matmul_precision("high")
    report = Report(options.limit)
    with tempfile.TemporaryDirectory() as home:
        world = gpu_models.World(Path(home), options)
        measure_ours(report, options, world)
        if "peers" in options.sections:
            measure_peers(report, options, world)
        if "resume" in options.sections:
            report.add("resume", "plain", lambda: gpu_ours.resume(Path(home), options))
        if "memory" in options.sections:
            report.add("memory", "capped", lambda: gpu_ours.capped(Path(home), options))
    result = {
        "about": about(options.device),
        "options": {
            "seconds": options.seconds,
            "layers": options.layers,
            "texts": world.source,
            "batch_queries": options.batch_queries,
        },
        "took_s": round(time.perf_counter() - report.started, 1),
        "ratios": ratios(report.rows),
        **report.rows,
    }
    out = options.out or Path(__file__).parent / "results" / (
        f"{options.device.type}-{datetime.now(UTC):%Y-%m-%d}.json"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nours by sentence-transformers: {json.dumps(result['ratios'], indent=1)}\n{out}")


if __name__ == "__main__":
    main()
