"""How long the report of a study takes: 162 runs, 22 collections, five measures, both databases.

    python benchmarks/report.py [--database URL ...] [--runs 162] [--depth 10] [--no-ranx]

Databases are filled through the job table's own verbs (minutes that are not measured): a new SQLite
file and, where `pgserver` is installed, a new PostgreSQL. Then the report with tests against the
first stage and of all pairs of every backbone's block, and with effects, is rendered in a fresh
process, imports included, best of three. ranx's `compare` and `Report` make the tables of every
block on every collection from the same rankings, compiled beforehand; it is given one seed of three
and rankings of only `--depth` documents, and averages neither seeds nor collections.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from study import (
    COLLECTIONS,
    FIRST_STAGE,
    MEASURES,
    OBJECTIVES,
    SEEDS,
    generate,
    latent_scores,
    relevance,
    systems,
)

from xsweep.db.engine import connect
from xsweep.db.status import summary
from xsweep.orchestrator.report import load_report, render
from xsweep.orchestrator.report.report import ReportOptions

if TYPE_CHECKING:
    from ranx import Qrels, Run

RANX_NAMES = ["ndcg@10", "mrr@10", "map", "hit_rate@5", "recall@1000"]
REPEATS = 3


def measure(database: str) -> dict[str, float]:
    """Seconds and peak memory of a whole report in this process, which does nothing else."""
    start = time.perf_counter()
    options = ReportOptions(measures=MEASURES, pairs=True, effects=True)
    report = load_report(connect(database), "study", options)
    text = render(report, "text")
    return {
        "seconds": time.perf_counter() - start,
        "cpu_s": time.process_time(),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "comparisons": len(report.comparisons),
        "characters": len(text),
    }


def with_ranx(database: str, backbones: int, depth: int) -> dict[str, float]:
    """Seconds of ranx's tables of every block; compares its means and p-values with ours."""
    from ranx import compare

    seed = str(SEEDS[0])
    options = ReportOptions(measures=MEASURES, pairs=True, where={"seed": [seed]})
    report = load_report(connect(database), "study", options)
    ours = {
        (frozenset((report.name(c.row), report.name(c.baseline))), c.column): c.p
        for c in report.comparisons
    }
    rows = {report.name(row): row for row in report.table.rows}
    wall_s = cpu_s = worst_p = worst_mean = 0.0
    tests = 0
    compare(judged("trec-dl-2019", depth), list(runs("trec-dl-2019", 1, depth)), RANX_NAMES)
    for collection in COLLECTIONS:
        columns = [c for c in report.table.columns if c.place == collection]
        qrels = judged(collection, depth)
        stage, *blocks = runs(collection, backbones, depth)
        for start in range(0, len(blocks), len(OBJECTIVES)):
            given = [stage, *blocks[start : start + len(OBJECTIVES)]]
            wall, cpu = time.perf_counter(), time.process_time()
            found = compare(qrels, given, RANX_NAMES, max_p=0.05)
            str(found)
            wall_s += time.perf_counter() - wall
            cpu_s += time.process_time() - cpu
            for ranx_name, column in zip(RANX_NAMES, columns, strict=True):
                for run in given:
                    mean = report.table.entries[rows[run.name], column].mean
                    theirs = found.results[run.name][ranx_name]
                    worst_mean = max(worst_mean, abs(mean - theirs))
                for one, other in combinations((run.name for run in given), 2):
                    p = found.comparisons[one, other][ranx_name]["p_value"]
                    worst_p = max(worst_p, abs(p - ours[frozenset((one, other)), column]))
                    tests += 1
    return {"seconds": wall_s, "cpu_s": cpu_s, "p": worst_p, "mean": worst_mean, "tests": tests}


def judged(collection: str, depth: int) -> "Qrels":
    """The collection's qrels for ranx; what is relevant and not retrieved has ids of its own."""
    from ranx import Qrels

    relevant, total = relevance(collection, depth)
    return Qrels(
        {
            f"q{query}": {f"d{doc}": 1 for doc in np.flatnonzero(row)}
            | {f"m{missed}": 1 for missed in range(all_ - row.sum())}
            for query, (row, all_) in enumerate(zip(relevant, total, strict=True))
        }
    )


def runs(collection: str, backbones: int, depth: int) -> "Iterator[Run]":
    """The first stage's ranking and each system's of the first seed, for ranx."""
    from ranx import Run

    names = [f"d{doc}" for doc in range(depth)]
    for system in systems(backbones):
        labels = system.labels
        if labels.get("seed", SEEDS[0]) == SEEDS[0]:
            scores = latent_scores(collection, system, depth).tolist()
            run = {f"q{i}": dict(zip(names, each, strict=True)) for i, each in enumerate(scores)}
            is_run = labels["system"] == "run"
            name = f"{FIRST_STAGE} (first stage)"
            name = f"{labels['backbone']} {labels['objective']}" if is_run else name
            yield Run(run, name=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", action="append", help="URL of an empty or filled database")
    parser.add_argument("--runs", type=int, default=162, help="a multiple of 18")
    parser.add_argument("--depth", type=int, default=10, help="documents of a ranking")
    parser.add_argument("--no-ranx", action="store_true")
    parser.add_argument("--only", choices=["report"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.database[0])))
        return
    backbones = options.runs // 18
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        databases = options.database or [f"sqlite:///{Path(folder) / 'study.db'}"]
        if not options.database and find_spec("pgserver"):
            import pgserver

            server = pgserver.get_server(Path(folder) / "postgresql", cleanup_mode="delete")
            stack.callback(server.cleanup)
            databases.append(server.get_uri())
        for database in databases:
            engine = connect(database, create=True)
            if not summary(engine, failures=0).sweeps:
                start = time.perf_counter()
                generate(engine, backbones, options.depth)
                print(f"generated in {time.perf_counter() - start:.0f} s", flush=True)
            engine.dispose()
        ours = {database: [run_alone(database) for _ in range(REPEATS)] for database in databases}
        for database, times in ours.items():
            best = min(times, key=lambda each: each["seconds"])
            print(
                f"xsweep, {database.partition(':')[0]}: {best['seconds']:.1f} s, "
                f"{min(each['cpu_s'] for each in times):.1f} s of CPU, "
                f"{max(each['peak_bytes'] for each in times) / 1e9:.2f} GB, "
                f"{best['comparisons']} tests",
                flush=True,
            )
        if options.no_ranx:
            return
        ranx = with_ranx(databases[0], backbones, options.depth)
        slowest = max(min(each["cpu_s"] for each in times) for times in ours.values())
        print(
            f"ranx, one seed of {len(SEEDS)}, rankings of {options.depth}: "
            f"{ranx['seconds']:.1f} s, {ranx['cpu_s']:.1f} s of CPU, {ranx['tests']} tests: "
            f"{ranx['cpu_s'] / slowest:.1f} times xsweep's CPU\n"
            f"largest difference of p {ranx['p']:.1e}, of means {ranx['mean']:.1e}"
        )


def run_alone(database: str) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--only", "report", "--database", database]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
