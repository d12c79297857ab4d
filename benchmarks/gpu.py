"""Scoring and training on one device beside sentence-transformers: one command, one JSON.

    python benchmarks/gpu.py [DATA] [--device cuda] [--precision bf16] [--seconds 4] [--limit 520]
        [--shapes minilm bert-base modernbert deberta-v3] [--layers N] [--sections scoring ...]
        [--objectives infonce distill_ranknet] [--pairs N] [--sentence-transformers PYTHON]
        [--out FILE]

Without Ray and database. DATA is a folder with `trec-dl-passage/`, whose texts are scored and
trained on, or a file with a line `{"query": TEXT, "documents": [TEXT, ...]}` for each query, of at
least 50 documents; without it the texts are those of the built-in collection. Models have random
weights in the shapes of MiniLM-L6, BERT-base, ModernBERT-base and DeBERTa-v3-base, all with
MiniLM's tokenizer. Every figure is measured for `--seconds`; what would begin after `--limit`
seconds is left out and says so, and what fails has its error in place of figures. Seconds of
figures are wall time on a GPU and CPU time on a CPU, which others may use too. Precision is bf16
on a GPU, and on a CPU what `precision: auto` is there; it is one for both sides.

- scoring: pairs/s at real lengths (at most 288 tokens) and at length 512, from token ids, which
  xsweep keeps, and from texts; `of_products` is the share of the rate that bare products of the
  model's own shapes reach in the same run
- training: pairs/s with infonce (lists of 8) and distill_ranknet (lists of 50), dropout on
- peers: sentence-transformers' `predict` and CrossEncoderTrainer from the same texts, in the
  environment whose Python is named (default: this one)
- resume: SHA-256 of the weights of a training, and of one killed with SIGKILL and continued
- memory: what a training does under a cap that its micro-batches exceed
- compile: a padded batch at length 512 as it is, by torch.compile and, on a GPU, by CUDA graphs
- busy: the share of the time in which the device computes, by a profile
- ratios: our best way by sentence-transformers', and ours by the padded one that is not compiled
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import gpu_busy
import gpu_compiled
import gpu_rates
import gpu_trainings
import torch
from gpu_models import LISTS, SHAPES, World
from gpu_report import Figures, Report, about, ratios

from xsweep.evaluator.device import choose_precision

PROCESSES = {"resume": gpu_trainings.resume, "memory": gpu_trainings.capped}
SECTIONS = ("scoring", "training", "peers", *PROCESSES, "compile", "busy")
PEERS = Path(__file__).with_name("gpu_peers.py")
PLACE_OF_A_RANK = frozenset(
    ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
)
RECORDED = ("precision", "seconds", "shapes", "layers", "pairs", "objectives", "batch_queries")
"""Options that figures depend on."""


def main() -> None:
    """Measures, prints and writes."""
    options = read_options()
    started = about(options.device)
    report = Report(options.limit)
    with tempfile.TemporaryDirectory() as home:
        world = World(Path(home), options)
        for shape in options.shapes:
            measure_ours(report, options, world, shape)
        if "peers" in options.sections:
            measure_peers(report, options, world, Path(home))
        for section, measure in PROCESSES.items():
            if section in options.sections:
                report.add(section, options.shapes[0], partial(measure, Path(home), world, options))
        if "compile" in options.sections:
            gpu_compiled.measure(report, options, world)
        if "busy" in options.sections:
            gpu_busy.measure(report, options, world)
    result = {
        "about": started,
        "options": {name: getattr(options, name) for name in RECORDED} | {"texts": world.source},
        "took_s": round(report.spent_s(), 1),
        "ratios": ratios(report.rows),
        **report.rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for ratio in result["ratios"]:
        print(f"{ratio['ratio']:8.3f}  {' / '.join(ratio['of'])}  by  {' / '.join(ratio['to'])}")
    print(options.out)


def read_options() -> argparse.Namespace:
    """The command line, with what follows from the device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("bf16", "fp32"))
    parser.add_argument("--seconds", type=float, default=4.0, help="for each figure")
    parser.add_argument("--limit", type=float, default=520.0, help="seconds for the whole")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES[:4])
    parser.add_argument("--layers", type=int, help="fewer layers than the shapes have")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--objectives", nargs="+", choices=LISTS, default=list(LISTS))
    parser.add_argument("--pairs", type=int, help="scored at a time (4,096; on a CPU 32)")
    parser.add_argument("--sentence-transformers", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.device = torch.device(options.device)
    on_cpu = options.device.type == "cpu"
    if not options.precision:
        fast, _ = choose_precision("auto")
        options.precision = "fp32" if on_cpu and fast == torch.float32 else "bf16"
    options.pairs = options.pairs or (32 if on_cpu else 4096)
    options.batch_queries = {"infonce": 16, "distill_ranknet": 4}
    if on_cpu:
        options.batch_queries = dict.fromkeys(LISTS, 1)
    name = f"{options.device.type}-{datetime.now(UTC):%Y-%m-%d}.json"
    options.out = options.out or Path(__file__).parent / "results" / name
    return options


def measure_ours(report: Report, options: argparse.Namespace, world: World, shape: str) -> None:
    """Scoring and training of a shape by every layout and engine."""
    if not {"scoring", "training"} & set(options.sections):
        return
    model, encoder = world.model(shape)
    rate = report.add("products", shape, lambda: gpu_rates.products(model, options)).get(
        "flop_per_s"
    )
    if "scoring" in options.sections:
        for length, pairs in world.pairs.items():
            for layout in gpu_rates.layouts(model):
                measure = partial(
                    gpu_rates.score, world, model, encoder, pairs, layout, options, rate
                )
                report.add("scoring", f"{shape}, {length}, {layout}", measure)
    if "training" in options.sections:
        model.cpu()
        for way in gpu_rates.ways(model, options.objectives):
            measure = partial(gpu_rates.train, world, shape, way, options, rate)
            report.add("training", f"{shape}, {', '.join(way)}", measure)
    torch.cuda.empty_cache()


def measure_peers(report: Report, options: argparse.Namespace, world: World, home: Path) -> None:
    """Rows of sentence-transformers by one process; each has figures or says why it has none."""
    job = {
        "device": options.device.type,
        "precision": options.precision,
        "seconds": options.seconds,
        "limit_s": report.left_s(),
        "models": {shape: str(world.folder(shape)) for shape in options.shapes},
        "pairs": {length: pairs.texts for length, pairs in world.pairs.items()},
        "lists": {name: lists.texts for name, lists in world.lists.items()},
        "tokens": {length: pairs.tokens for length, pairs in world.pairs.items()},
        "batch_queries": options.batch_queries,
    }
    missing = [
        f"{what}: {shape}, {work}"
        for shape in options.shapes
        for what, works in (("predict", world.pairs), ("trainer", world.lists))
        for work in works
    ]
    path, errors = home / "peers.json", home / "peers.log"
    path.write_text(json.dumps(job), encoding="utf-8")
    reason = "the time limit was reached"
    if report.left_s() > 0:
        try:
            for row, figures in run_peers([options.sentence_transformers, PEERS, path], errors):
                missing.remove(row)
                report.put("peers", row, figures)
            lines = errors.read_text(encoding="utf-8").split("\n")
            reason = f"the process ended early: {''.join(filter(None, lines[-2:]))[:500]}"
        except OSError as error:
            reason = f"there is no process: {error}"
    for row in missing:
        report.put("peers", row, {"left_out": reason})


def run_peers(command: list[str | Path], errors: Path) -> Iterator[tuple[str, Figures]]:
    """The rows of a process as they come; what it says else is in the file `errors`."""
    # Our own training of one rank leaves its place here, which a peer would take for its own.
    alone = {name: value for name, value in os.environ.items() if name not in PLACE_OF_A_RANK}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "env": alone}
    with (
        errors.open("w", encoding="utf-8") as log,
        subprocess.Popen(command, stderr=log, **pipes) as process,
    ):
        assert process.stdout
        for line in process.stdout:
            if line.startswith('{"row": '):
                figures = json.loads(line)
                yield figures.pop("row"), figures


if __name__ == "__main__":
    main()
