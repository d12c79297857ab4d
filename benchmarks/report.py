"""How long the report of a study takes: 162 runs, 22 collections, five measures, both databases.

    python benchmarks/report.py [--database URL] [--runs 162] [--queries 44429]

A database is generated through the job table's own verbs (minutes that are not measured), then the
report with all baseline and block-wise tests is rendered in a fresh process. ranx makes the tests
of every backbone's block from the same per-query values; measuring the runs is not asked of it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
from sqlalchemy import Engine

from db import jobs
from db.engine import connect
from db.results import load_cells

QUERIES = [6980, 43, 54, 1406, 1535, 400, 6666, 648, 7405, 323, 3452, 10000, 1000, 300, 50, 49]
QUERIES += [1071, 924, 617, 596, 661, 249]
"""Queries of the study's 22 collections."""
MEASURES = ["nDCG@10", "RR@10", "AP", "Success@5", "R@1000"]
RANX_NAMES = ["ndcg@10", "mrr@10", "map", "hit_rate@5", "recall@1000"]
OBJECTIVES = ["bce", "hinge", "infonce", "margin_mse", "distill_ranknet", "adr_mse"]


def generate(engine: Engine, backbones: int) -> None:
    """Fill the database with a finished sweep of `backbones` x 6 objectives x 3 seeds."""
    jobs.add_sweep(engine, name="study", grid="", jobs=list(planned(backbones)))
    generator = np.random.default_rng(0)
    difficulty = [generator.uniform(0, 0.7, queries) for queries in QUERIES]
    while claims := jobs.claim(engine, owner="benchmark", limit=500, lease_s=3600):
        for claim in claims:
            scores = None
            if claim.kind == "evaluate":
                base = difficulty[claim.spec["place"]] + claim.spec["quality"]
                values = {
                    m: np.clip(base + generator.normal(0, 0.15, len(base)), 0, 1) for m in MEASURES
                }
                scores = {
                    m: {f"q{i}": v for i, v in enumerate(each.tolist())}
                    for m, each in values.items()
                }
            jobs.finish(
                engine,
                job_id=claim.job_id,
                token=claim.token,
                folder="nowhere",
                manifest_sha256="0" * 64,
                summary={},
                provenance={"spec": {}},
                scores=scores,
                query_set_name=str(claim.spec.get("place")),
            )


def planned(backbones: int):
    """The jobs of the sweep: candidates, trainings, and every system on every collection."""
    for place in range(len(QUERIES)):
        yield job("prepare", f"candidates {place}", {})
        yield evaluation(place, "first stage", 0.1, {"system": "first_stage"})
    for backbone in range(backbones):
        for quality, objective in enumerate(OBJECTIVES):
            for seed in (1, 2, 3):
                name = f"backbone-{backbone} {objective} s{seed}"
                yield job("train", f"train {name}", {})
                labels = {"system": "run", "backbone": f"backbone-{backbone}", "seed": seed}
                labels |= {"objective": objective, "teacher": f"teacher-{quality}"}
                for place in range(len(QUERIES)):
                    yield evaluation(place, name, 0.1 + quality / 100, labels, run=f"train {name}")


def evaluation(place: int, name: str, quality: float, labels: dict, **parents: str) -> jobs.NewJob:
    labels = labels | {"collection": f"collection-{place}", "first_stage": "SPLADE", "depth": 1000}
    spec = {"place": place, "quality": quality}
    parents |= {"candidates": f"candidates {place}"}
    return job("evaluate", f"evaluate {name} [{place}]", spec, labels, parents)


def job(kind: str, name: str, spec: dict, labels: dict | None = None, parents: dict | None = None):
    return jobs.NewJob(
        identity=identity(name),
        kind=kind,
        name=name,
        spec=spec,
        labels=labels or {},
        parents={role: identity(parent) for role, parent in (parents or {}).items()},
    )


def identity(name: str) -> str:
    return sha256(name.encode()).hexdigest()


def measure(database: str) -> dict[str, float]:
    """Seconds and peak memory of a whole report, imports and database included."""
    start = time.perf_counter()
    from orchestrator.report import render

    text = render(connect(database), "study", measures=MEASURES, effects=True)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_s": time.process_time(),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "characters": len(text),
    }


def with_ranx(database: str) -> dict[str, float]:
    """CPU seconds of ranx's tests and tables of every block; compares its p-values with ours."""
    from ranx.data_structures.report import Report as RanxReport
    from ranx.statistical_tests import compute_statistical_significance

    from orchestrator.report.build import build_report

    report = build_report(load_cells(connect(database), "study"), sweep="study", measures=MEASURES)
    ours = {(c.row, c.column): c.p for c in report.comparisons}
    cpu_s, worst, tests = 0.0, 0.0, 0
    stage, *_ = report.table.rows
    for first in report.table.columns[: len(QUERIES)]:
        columns = [c for c in report.table.columns if c.place == first.place]
        for block in report.blocks[1:]:
            rows = {report.name(row): row for row in (stage, *block)}
            scores = {
                name: {
                    ranx_name: report.table.entries[row, column].per_query[0]
                    for ranx_name, column in zip(RANX_NAMES, columns, strict=True)
                }
                for name, row in rows.items()
            }
            start = time.process_time()
            found = compute_statistical_significance(list(rows), scores, "student", max_p=0.05)
            means = {
                name: {m: float(np.mean(values)) for m, values in each.items()}
                for name, each in scores.items()
            }
            str(RanxReport(list(rows), means, found, RANX_NAMES, 0.05, {}, stat_test="student"))
            cpu_s += time.process_time() - start
            for row in block:
                pair = found[frozenset([report.name(stage), report.name(row)])]
                for ranx_name, column in zip(RANX_NAMES, columns, strict=True):
                    theirs = pair[ranx_name]["p_value"]
                    worst = max(worst, abs(theirs - ours[row, column]))
                    tests += 1
    return {"cpu_s": cpu_s, "largest_difference_of_p": worst, "p_values_compared": tests}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", help="URL of an empty database; default a new SQLite file")
    parser.add_argument("--runs", type=int, default=162, help="a multiple of 18")
    parser.add_argument("--only", choices=["report"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.database)))
        return
    with tempfile.TemporaryDirectory() as folder:
        database = options.database or f"sqlite:///{Path(folder) / 'study.db'}"
        start = time.perf_counter()
        generate(connect(database, create=True), options.runs // 18)
        print(f"generated in {time.perf_counter() - start:.0f} s", flush=True)
        command = [sys.executable, __file__, "--only", "report", "--database", database]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        ours, ranx = json.loads(done.stdout), with_ranx(database)
        print(
            f"xsweep: {ours['seconds']:.1f} s, of which {ours['cpu_s']:.1f} s of CPU; "
            f"{ours['peak_bytes'] / 1e9:.2f} GB"
        )
        print(
            f"ranx:   {ranx['cpu_s']:.1f} s of CPU for its tests and tables alone; "
            f"{ranx['p_values_compared']} p-values compared, largest difference "
            f"{ranx['largest_difference_of_p']:.1e}"
        )


if __name__ == "__main__":
    main()
