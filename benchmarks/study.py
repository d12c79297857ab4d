"""A finished study made up for benchmarks: 162 runs on 22 collections, rankings included.

Rankings are a function of (collection, system, seed), so that a peer can be given the same ones
that the stored values were measured from. Latent scores are relevance times a system's quality plus
noise: how systems differ is made up, how many numbers there are is not.
"""

from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from sqlalchemy import Engine

from xsweep.db import jobs
from xsweep.evaluator.data.suites import SUITES

COLLECTIONS = dict(
    zip(
        [
            *SUITES["in-domain"],
            *SUITES["beir-13"],
            *SUITES["lotte-search"],
            *SUITES["robust04"],
        ],
        [
            *(6980, 43, 54, 1406, 1535, 400, 6666, 648, 7405, 323, 3452),
            *(10000, 1000, 300, 50, 49, 1071, 924, 617, 596, 661, 249),
        ],
        strict=True,
    )
)
"""Queries of the study's 22 collections."""
BACKBONES = {
    "jhu-clsp/ettin-encoder-17m": ("Ettin-17M", "mini", 0.2),
    "jhu-clsp/ettin-encoder-32m": ("Ettin-32M", "mini", 0.4),
    "jhu-clsp/ettin-encoder-68m": ("Ettin-68M", "mini", 0.7),
    "microsoft/MiniLM-L12-H384-uncased": ("MiniLM-L12", "mini", 0.6),
    "bert-base-uncased": ("BERT-Base", "base", 0.7),
    "google/electra-base-discriminator": ("ELECTRA", "base", 0.8),
    "FacebookAI/roberta-base": ("RoBERTa", "base", 0.6),
    "jhu-clsp/ettin-encoder-150m": ("Ettin-150M", "base", 0.9),
    "microsoft/deberta-v3-base": ("DeBERTa-v3", "base", 1.0),
}
OBJECTIVES = {
    "bce": ("triples", 0.0),
    "hinge": ("triples", 0.3),
    "infonce": ("colbertv2", 0.6),
    "margin_mse": ("ensemble", 0.5),
    "distill_ranknet": ("rankzephyr", 0.3),
    "adr_mse": ("rankzephyr", 0.3),
}
SEEDS = (12, 13, 14)
FIRST_STAGE = "SPLADE-v3-DistilBERT"
MEASURES = ["nDCG@10", "RR@10", "AP", "Success@5", "R@1000"]


class System(NamedTuple):
    """A first stage or one run."""

    name: str
    quality: float
    labels: dict
    backbone_id: str = ""


def systems(backbones: int) -> Iterator[System]:
    """The first stage, then every run of the first so many backbones."""
    yield System("first stage", 0.6, {"system": "first_stage"})
    for id_, (label, group, base) in list(BACKBONES.items())[:backbones]:
        for objective, (teacher, gain) in OBJECTIVES.items():
            for seed in SEEDS:
                luck = np.random.default_rng(number(f"{label}{objective}{seed}")).normal(0, 0.02)
                labels = {"backbone": label, "group": group, "objective": objective}
                labels |= {"system": "run", "teacher": teacher, "seed": seed}
                name = f"{label} {objective} {teacher} s{seed}"
                yield System(name, 0.4 + base + gain + luck, labels, id_)


def relevance(collection: str, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Which retrieved documents are relevant, bool[queries, depth], and how many there are."""
    generator = np.random.default_rng(number(collection))
    queries = COLLECTIONS[collection]
    relevant = generator.random((queries, depth)) < 2 / depth
    missed = generator.integers(0, 3, queries)
    missed[(missed == 0) & ~relevant.any(1)] = 1
    return relevant, relevant.sum(1) + missed


def latent_scores(collection: str, system: System, depth: int) -> np.ndarray:
    """The system's scores of every query's documents: float64[queries, depth]."""
    relevant, _ = relevance(collection, depth)
    noise = np.random.default_rng(number(f"{collection} {system.name}"))
    shared = np.random.default_rng(number(f"{collection} difficulty"))
    hard = shared.normal(0, 1, relevant.shape)
    return relevant * system.quality + hard + noise.normal(0, 0.5, relevant.shape)


def per_query(collection: str, system: System, depth: int) -> dict[str, np.ndarray]:
    """The five measures of the system's rankings: float64[queries] each."""
    relevant, total = relevance(collection, depth)
    order = np.argsort(-latent_scores(collection, system, depth), axis=1)
    gains = np.take_along_axis(relevant, order, axis=1).astype(float)
    ranks = np.arange(1, depth + 1)
    discount = 1 / np.log2(ranks + 1)
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(1, 11) + 1))])
    first = np.where(gains[:, :10].any(1), gains[:, :10].argmax(1) + 1, np.inf)
    precision = gains.cumsum(1) / ranks
    return {
        "nDCG@10": (gains[:, :10] @ discount[:10]) / ideal[np.minimum(total, 10)],
        "RR@10": 1 / first,
        "AP": (precision * gains).sum(1) / total,
        "Success@5": gains[:, :5].any(1).astype(float),
        "R@1000": gains[:, :1000].sum(1) / total,
    }


def generate(engine: Engine, backbones: int, depth: int) -> None:
    """Fill the database with the finished study through the job table's own verbs."""
    jobs.add_sweep(engine, name="study", grid="", jobs=list(planned(backbones)))
    known = {system.name: system for system in systems(backbones)}
    ids = {name: [f"q{i}" for i in range(n)] for name, n in COLLECTIONS.items()}
    while claims := jobs.claim(engine, owner="benchmark", limit=500, lease_s=3600):
        for claim in claims:
            folder = f"jobs/{claim.kind}/{claim.identity}/attempt-1"
            place = jobs.Place(actor="a", node="n", folder=folder, log=f"{folder}/log")
            jobs.mark_started(engine, {claim.lease: place})
            scores, collection = None, claim.spec.get("collection")
            if claim.kind == "evaluate":
                measured = per_query(collection, known[claim.spec["system"]], depth)
                scores = {
                    name: dict(zip(ids[collection], values.tolist(), strict=True))
                    for name, values in measured.items()
                }
            result = jobs.NewResult(
                lease=claim.lease,
                folder=folder,
                manifest_sha256="0" * 64,
                summary={"seconds": 60.0},
                provenance={
                    "source": {"commit": "0" * 40, "dirty": False},
                    "spec": claim.spec,
                },
                scores=scores,
                query_set_name=collection,
            )
            jobs.finish(engine, [result])


def planned(backbones: int) -> Iterator[jobs.NewJob]:
    """The jobs of the sweep: candidates, trainings, and every system on every collection."""
    stage = {"type": "run", "file": {"path": "splade-v3.run.gz", "md5": "0" * 32}, "order": "score"}
    for collection in COLLECTIONS:
        yield job("prepare", f"candidates {collection}", {"first_stage": stage})
    for order, system in enumerate(systems(backbones)):
        parents = {}
        if system.backbone_id:
            validation = {"measure": "nDCG@10", "collection": {"name": "nano-beir"}}
            spec = {"backbone": {"id": system.backbone_id}, "validation": validation}
            yield job("train", f"train {system.name}", spec, system.labels)
            parents = {"run": f"train {system.name}"}
        for collection in COLLECTIONS:
            yield job(
                "evaluate",
                f"evaluate {system.name} [{collection}]",
                {"collection": collection, "system": system.name},
                system.labels
                | {"collection": collection, "first_stage": FIRST_STAGE, "depth": 1000}
                | {"order": order},
                parents | {"candidates": f"candidates {collection}"},
            )


def job(kind: str, name: str, spec: dict, labels: dict | None = None, parents: dict | None = None):
    return jobs.NewJob(
        identity=identity(name),
        kind=kind,
        name=name,
        spec=spec,
        labels=labels or {},
        parents={role: identity(parent) for role, parent in (parents or {}).items()},
        resources={"cpus": 1.0, "gpus": 1.0 if kind == "train" else 0.5},
    )


def identity(name: str) -> str:
    return sha256(name.encode()).hexdigest()


def number(name: str) -> int:
    """A seed that depends on nothing but the name."""
    return int(identity(name)[:12], 16)
