"""Hyperparameter search: the job `search` picks its best trial, and a run takes its settings.

A search's folder has `winner.json` (settings, the trial and its validation), `trials.json` (the
result of every trial) and, if the winner was trained to its last step, `winner/` with that trial's
files: a run with the same specification copies them and trains nothing.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from xsweep.errors import ConfigError, DataError, DivergenceError, field_errors
from xsweep.evaluator.data.files import link
from xsweep.evaluator.provenance import collect, now
from xsweep.trainer.result import read_json, write_json, write_result, writing
from xsweep.trainer.specs import SearchSpec, TrainSpec

FILES = ("model", "metrics.jsonl", "tensorboard")
"""A training's files apart from summary.json, provenance.json and its manifest."""


def run_job(kind: str, spec: dict, inputs: Mapping[str, Path], out: Path) -> None:
    """Picks the trial with the best validation, the first of equals, and fills `out`.

    `inputs` are the trials' folders by role. Raises ConfigError for a wrong specification,
    DataError if no trial has a validation because all have diverged.
    """
    try:
        search = SearchSpec.model_validate(spec)
    except ValidationError as error:
        raise ConfigError(f"search specification: {field_errors(error)}") from None
    provenance = collect(spec)
    trials = [_read_trial(role, Path(inputs[role]), search) for role in sorted(inputs)]
    validated = [trial for trial in trials if trial["validation"] is not None]
    if not validated:
        raise DataError(
            f"none of the {len(trials)} trials has a validation, all have diverged: search lower "
            "learning rates, or check the teacher's scores"
        )
    best = max(validated, key=lambda trial: trial["validation"])  # the first of equals
    folder = Path(inputs[best["trial"]])
    out.mkdir(parents=True, exist_ok=True)
    if best["ended"] == "complete":
        for name in (*FILES, "summary.json", "provenance.json"):
            _link(folder / name, out / "winner" / name)
    with writing(out):
        write_json(out / "trials.json", trials)
        found = read_json(folder / "summary.json")["fingerprint"]
        write_json(out / "winner.json", best | {"fingerprint": found})
    summary = {
        "measure": search.measure,
        "trials": len(trials),
        "halted": sum(trial["ended"] == "halted" for trial in trials),
        "diverged": sum(trial["ended"] == "diverged" for trial in trials),
        "winner": best,
    }
    write_result(out, summary, provenance | {"ended": now()})


def _read_trial(role: str, folder: Path, search: SearchSpec) -> dict[str, Any]:
    summary = read_json(folder / "summary.json")
    optimisation = read_json(folder / "provenance.json")["spec"]["optimisation"]
    ended = "diverged" if "diverged" in summary else "halted" if "halted" in summary else "complete"
    return {
        "trial": role,
        "settings": {name: optimisation[name] for name in search.settings},
        "validation": summary.get("best_validation"),
        "best_step": summary.get("best_step"),
        "steps": summary.get("steps"),
        "ended": ended,
    }


class Winner(NamedTuple):
    """The best trial of a search."""

    choice: dict[str, Any]
    """Trial (its role, such as `trial-03`), its settings of `optimisation`, and its validation."""
    fingerprint: str
    """`fingerprint` of the trial."""
    folder: Path | None
    """The trial's files; None if it was not trained to its last step."""


def read_winner(inputs: Mapping[str, Path]) -> Winner:
    """The winner of the input `search`. Raises ConfigError if there is no such input."""
    if "search" not in inputs:
        raise ConfigError("this training takes settings of a search: name its folder as `search`")
    found = read_json(inputs["search"] / "winner.json")
    choice = {name: found[name] for name in ("trial", "settings", "validation")}
    folder = inputs["search"] / "winner" if found["ended"] == "complete" else None
    return Winner(choice, found["fingerprint"], folder)


def apply_winner(spec: TrainSpec, winner: Winner) -> TrainSpec:
    """The specification with the winner's settings, as if the grid had given them.

    Raises ConfigError if they are invalid together: 5,000 warm-up steps of a trial in a run of
    4,000 steps.
    """
    given = spec.model_dump(mode="json", exclude={"searched"})
    chosen = {name: winner.choice["settings"][name] for name in spec.searched}
    given["optimisation"] |= chosen
    try:
        return TrainSpec.model_validate(given)
    except ValidationError as error:
        raise ConfigError(
            f"the search's winner {chosen} does not fit this run: {field_errors(error)}"
        ) from None


def fingerprint(spec: TrainSpec) -> str:
    """SHA-256 of a training's full specification, the same for a trial and a run.

    Provenance names files without their folders, so it cannot show that two trainings are one.
    """
    same = spec.model_copy(update={"trial": None, "searched": ()}).model_dump(mode="json")
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def reuse_winner(spec: TrainSpec, winner: Winner, out: Path) -> bool:
    """Copies the winning trial's files if it was the same training; False if it was another."""
    if winner.folder is None or winner.fingerprint != fingerprint(spec):
        return False
    if _is_first_rank():
        shutil.rmtree(out, ignore_errors=True)  # of an interrupted attempt
        for name in FILES:
            _link(winner.folder / name, out / name)
        summary = read_json(winner.folder / "summary.json") | {"search": winner.choice}
        provenance = read_json(winner.folder / "provenance.json")
        provenance |= {"spec": {**provenance["spec"], "trial": None}, "taken_over": now()}
        write_result(out, summary, provenance)
    return True


def record_divergence(spec: TrainSpec, out: Path, error: DivergenceError) -> None:
    """Writes a trial's divergence as its result: such settings lose the search."""
    if _is_first_rank():
        summary = {"best_validation": None, "diverged": str(error)}
        provenance = collect(spec.model_dump(mode="json")) | {"ended": now()}
        write_result(out, summary | {"fingerprint": fingerprint(spec)}, provenance)


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _link(source: Path, target: Path) -> None:
    """Links a file, or the files of a folder; copies them if the disk has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=link)
    elif source.exists():
        link(source, target)
