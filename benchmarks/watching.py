"""What looking costs: pages of `xsweep serve`, `status --watch`, metrics, at the study's size.

    python benchmarks/watching.py [--studies 1] [--repeats 20]

A SQLite file is filled through the job table's own verbs: per study 9 backbones x 6 objectives x 3
seeds, 22 collections, 3 measures of 200 queries, half of the jobs done. Then each page is asked
for over HTTP, best and median of `--repeats`, and what a look of the watch and a scrape take, with
the share of a core that this is at the pace at which they look.
"""

import argparse
import http.client
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
from sqlalchemy import Engine, event

from xsweep.db import jobs
from xsweep.db.engine import connect
from xsweep.db.status import summary
from xsweep.orchestrator.monitoring.live import page
from xsweep.orchestrator.monitoring.metrics import as_text
from xsweep.orchestrator.serve import open_server
from xsweep.orchestrator.serve.pages import Site
from xsweep.orchestrator.storage.store import Store

BACKBONES, OBJECTIVES, SEEDS, COLLECTIONS, QUERIES = 9, 6, 3, 22, 200
LOOK_S = 2.0


def study(number: int) -> Iterator[jobs.NewJob]:
    """One study's jobs."""

    def job(kind: str, name: str, parents: tuple[str, ...] = (), **labels: object) -> jobs.NewJob:
        return jobs.NewJob(
            identity=sha256(name.encode()).hexdigest(),
            kind=kind,
            name=name,
            spec={"name": name, "settings": dict.fromkeys(map(str, range(20)), 1)},
            parents={parent: sha256(parent.encode()).hexdigest() for parent in parents},
            labels=labels,
        )

    cells = product(range(BACKBONES), range(OBJECTIVES), range(SEEDS))
    for place, (backbone, objective, seed) in enumerate(cells):
        labels = {"backbone": f"B{backbone}", "objective": f"O{objective}", "teacher": "t"}
        run = f"train {number} {place}"
        yield job("train", run, seed=seed, **labels)
        for collection in range(COLLECTIONS):
            where = {"system": "run", "collection": f"collection-{collection}", "seed": seed}
            name = f"evaluate {number} {place} {collection}"
            yield job("evaluate", name, (run,), **labels, **where)


def fill(engine: Engine, studies: int) -> None:
    """Half of everything done, 16 jobs running."""
    random = np.random.default_rng(1)
    names = [f"q{query}" for query in range(QUERIES)]
    for number in range(studies):
        jobs.add_sweep(engine, name=f"study-{number}", grid="", jobs=list(study(number)))
    total = studies * BACKBONES * OBJECTIVES * SEEDS * (1 + COLLECTIONS)
    left = total // 2
    while left > 0:
        claims = jobs.claim(engine, owner="me", limit=min(500, left), lease_s=3600)
        results = []
        for claim in claims:
            scores = None
            if claim.kind == "evaluate":
                values = random.random((3, QUERIES)).tolist()
                scores = {
                    measure: dict(zip(names, row, strict=True))
                    for measure, row in zip(("nDCG@10", "RR@10", "AP"), values, strict=True)
                }
            results.append(
                jobs.NewResult(
                    lease=claim.lease,
                    folder=claim.name,
                    manifest_sha256="0" * 64,
                    summary={},
                    provenance={},
                    scores=scores,
                )
            )
        jobs.finish(engine, results)
        left -= len(claims)
    running = jobs.claim(engine, owner="me", limit=16, lease_s=3600)
    progress = {claim.lease: {"done": 5, "total": 10, "pairs_per_s": 100.0} for claim in running}
    jobs.renew(engine, list(progress), lease_s=3600, progress=progress)


def timed(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Best and median milliseconds."""
    took = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        work()
        took.append(1e3 * (time.perf_counter() - began_s))
    return min(took), median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/xsweep.db"
        writer = connect(url, create=True)
        fill(writer, options.studies)
        total = sum(sweep.total for sweep in summary(writer).sweeps)
        print(f"{total} jobs, {Path(folder, 'xsweep.db').stat().st_size / 1e6:.0f} MB")
        engine = connect(url, read_only=True)
        server = open_server(Site(engine, Store(Path(folder)), "database").respond, 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = http.client.HTTPConnection("127.0.0.1", server.server_port)
        parts = ("", "/jobs?kind=train", "/curves", "/queries", "/queries.json")
        sweep = [f"/sweep/study-0{part}" for part in parts]
        for path in ("/", *sweep, "/job/1", "/metrics"):
            sizes = []

            def get(path: str = path, sizes: list[int] = sizes) -> None:
                client.request("GET", path)
                sizes.append(len(client.getresponse().read()))

            best, middle = timed(get, options.repeats)
            print(f"GET {path:32} {best:8.1f} ms best {middle:8.1f} ms median {sizes[0]:9,} bytes")
        server.shutdown()
        statements: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *row: statements.append(row[2]))
        for name, work in (
            ("status --watch, a look", lambda: list(page(summary(engine)))),
            ("metrics, a scrape", lambda: as_text(engine)),
        ):
            work()
            statements.clear()
            best, middle = timed(work, options.repeats)
            pace_s = max(LOOK_S, middle / 10)
            print(
                f"{name:36} {best:8.1f} ms best {middle:8.1f} ms median, "
                f"{len(statements) // options.repeats} statements, "
                f"{middle / 10 / pace_s:.2f}% of a core"
            )


if __name__ == "__main__":
    main()
