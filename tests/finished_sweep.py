"""A sweep `demo` in a real job table: BM25 and one run with three seeds, one of which fails."""

from hashlib import sha256

from xsweep.db import jobs

QUERIES = [f"q{i}" for i in range(5)]
SCORES = {
    "evaluate BM25": [0.1, 0.2, 0.1, 0.0, 0.1],
    "evaluate L6 s1": [0.6, 0.6, 0.5, 0.5, 0.5],
    "evaluate L6 s2": [0.7, 0.7, 0.6, 0.6, 0.6],
}


def new_job(kind, name, parents=(), **labels):
    return jobs.NewJob(
        identity=sha256(name.encode()).hexdigest(),
        kind=kind,
        name=name,
        spec={},
        parents={role: sha256(parent.encode()).hexdigest() for role, parent in parents},
        labels=labels,
    )


def submit(engine, name="demo"):
    place = {"collection": "news", "first_stage": "BM25", "depth": 20}
    cell = {"backbone": "L6", "objective": "infonce", "teacher": "lists"}
    run = {"system": "run"} | cell | place
    candidates = ("candidates", "prepare candidates")
    sweep = [
        new_job("prepare", "prepare candidates"),
        new_job("evaluate", "evaluate BM25", [candidates], system="first_stage", **place),
    ]
    for seed in (1, 2, 3):
        trained = ("run", f"train s{seed}")
        sweep.append(new_job("train", f"train s{seed}", seed=seed, **cell))
        name_ = f"evaluate L6 s{seed}"
        sweep.append(new_job("evaluate", name_, [candidates, trained], seed=seed, **run))
    jobs.add_sweep(engine, name=name, grid="", jobs=sweep)


def work(engine, *, until: int) -> None:
    """Do `until` jobs as a controller would, all but the third seed's evaluation with success."""
    specs = {
        "prepare": {"first_stage": {"type": "bm25", "k1": 0.9, "b": 0.4}},
        "train": {"validation": {"measure": "RR@10", "collection": {"name": "held-out"}}},
        "evaluate": {},
    }
    for _ in range(until):
        (claim,) = jobs.claim(engine, owner="me", limit=1, lease_s=60)
        place = jobs.Place(actor="a", node="n", folder=claim.name, log="log")
        jobs.mark_started(engine, {claim.lease: place})
        if claim.name == "evaluate L6 s3":
            jobs.fail(engine, claim.lease, failure="CONFIG", reason="planted")
            continue
        values = SCORES.get(claim.name)
        result = jobs.NewResult(
            lease=claim.lease,
            folder=claim.name,
            manifest_sha256="0" * 64,
            summary={"queries_without_results": 0} if values else {},
            provenance={"spec": specs[claim.kind]},
            scores={"nDCG@10": dict(zip(QUERIES, values, strict=True))} if values else None,
            query_set_name="news",
        )
        jobs.finish(engine, [result])
