"""A sweep that is done without computing: each job leaves a small folder, as a worker would."""

import json
import random
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

from gridtext import write_grid
from sqlalchemy import Engine

from xsweep.db import jobs
from xsweep.db.engine import connect
from xsweep.evaluator.data.files import write_manifest
from xsweep.evaluator.data.trec import write_run
from xsweep.evaluator.provenance import without_places
from xsweep.orchestrator.plan import plan_grid
from xsweep.orchestrator.runtime.controller import accept_all
from xsweep.orchestrator.settings import Settings
from xsweep.orchestrator.storage.store import Store, attempt_folder

OWNER = "alice"


def submit_small(folder: Path, *changes: tuple[str, str]) -> Engine:
    """The small grid of `gridtext`, stored in a new database of the folder."""
    home = folder / ".xsweep"
    settings = Settings(home=home, database="", store="", ray_address=None, data_home=None)
    planned = plan_grid(write_grid(folder, *changes), settings)
    engine = connect(f"sqlite:///{home / 'xsweep.db'}", create=True)
    jobs.add_sweep(engine, name=planned.name, grid=planned.grid, jobs=planned.jobs)
    return engine


def run_all(engine: Engine, store: Path, limit: int = 1_000, model: Path | None = None) -> int:
    """Claim and accept until nothing is left, or `limit` jobs are done; how many that were.

    Every training leaves a copy of the model's folder, by default a stand-in.
    """
    done = 0
    while done < limit:
        claims = jobs.claim(engine, owner=OWNER, limit=1, lease_s=60)
        if not claims:
            break
        finish_one(engine, store, claims[0], model)
        done += 1
    return done


def copy_of(folder: Path, to: Path) -> tuple[Engine, Path]:
    """A copy of a folder with database and store, for a test to change."""
    shutil.copytree(folder, to)
    return connect(f"sqlite:///{to / '.xsweep' / 'xsweep.db'}"), to / "store"


def finish_one(engine: Engine, store: Path, claim: jobs.Claim, model: Path | None = None) -> str:
    """Write what a worker would have written, and have it accepted; its folder in the store."""
    folder = attempt_folder(claim.kind, claim.identity, claim.token)
    place = jobs.Place(actor="a", node="n", folder=folder, log=f"{folder}.log")
    jobs.mark_started(engine, {claim.lease: place})
    write_result(store / folder, claim, model)
    assert accept_all(engine, Store(store), [(claim.lease, folder)]) == [True]
    return folder


def write_result(path: Path, claim: jobs.Claim, model: Path | None = None) -> None:
    path.mkdir(parents=True)
    summary: dict[str, Any] = {"pairs": 7, "queries_without_results": 0}
    spec = without_places(claim.spec)
    provenance = {"xsweep": "1", "spec": spec, "python": "3", "source": None, "started": "now"}
    provenance |= {"packages": {}, "hardware": {"cpu": "c", "gpus": []}}
    (path / "provenance.json").write_text(json.dumps(provenance))
    if claim.kind == "train":
        if model:
            shutil.copytree(model, path / "model")
        else:
            (path / "model").mkdir()
            (path / "model" / "model.safetensors").write_bytes(claim.identity.encode())
        (path / "model" / "README.md").write_text("# a card")
        figures = ({"step": step, "loss": 1 / step, "lr": 1e-5} for step in (50, 100))
        (path / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in figures))
        summary |= {"steps": 100, "best_step": 50, "best_validation": 0.5, "final_loss": 0.1}
        summary |= {"pairs_per_s": 9.0, "padding_waste": 0.0}
    if claim.kind == "evaluate":
        values = random.Random(claim.identity)
        scores = {f"q{number}": values.random() for number in range(20)}
        measures = spec["measures"]
        (path / "per_query.json").write_text(json.dumps(dict.fromkeys(measures, scores)))
        summary["means"] = dict.fromkeys(measures, fmean(scores.values()))
        write_run(path / "run.trec.gz", {query: {"d1": scores[query]} for query in scores}, "t")
    (path / "summary.json").write_text(json.dumps(summary))
    write_manifest(path)
