"""Searches for settings: the job `search` picks the best of its trials, a run takes its settings.

A search's folder has `winner.json` (settings, the trial and its validation), `trials.json` (every
trial with what became of it) and, where the winner was trained to its end, `winner/` with that
trial's files: a run that is the same training takes them over and trains nothing.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from xsweep.errors import ConfigError, DataError, DivergenceError
from xsweep.evaluator.data.files import write_manifest
from xsweep.evaluator.provenance import collect, now
from xsweep.trainer.checkpoint import writing
from xsweep.trainer.specs import SearchSpec, TrainSpec

FILES = ("model", "metrics.jsonl", "tensorboard")


TOLD = ("summary.json", "provenance.json")
"""What a training's folder consists of, apart from its manifest."""


class Winner(NamedTuple):
    """What a search came to."""

    settings: dict[str, Any]
    """Of `optimisation`."""
    trial: str
    """Its role in the search: `trial-03`."""
    validation: float
    fingerprint: str
    """Of the winning trial, see `fingerprint`."""
    folder: Path | None
    """Its files, where it was trained to its end."""

    @property
    def pointer(self) -> dict[str, Any]:
        """What a run says of where its settings come from."""
        return {
            "trial": self.trial,
            "settings": self.settings,
            "validation": self.validation,
        }


def run_job(
    kind: str,
    spec: dict,
    inputs: Mapping[str, Path],
    out: Path,
    report: object = None,
    resume_from: Sequence[Path] = (),
) -> None:
    """Picks the trial with the best validation, the first of equals, and fills `out`.

    Inputs are the trials' folders by their roles. Raises ConfigError for a wrong specification,
    DataError where no trial has a validation: all have diverged.
    """
    try:
        search = SearchSpec.model_validate(spec)
    except ValidationError as error:
        raise ConfigError(f"search specification: {error.errors()[0]['msg']}") from None
    provenance = collect(spec)
    trials = [_trial(role, Path(inputs[role]), search) for role in sorted(inputs)]
    judged = [trial for trial in trials if trial["validation"] is not None]
    if not judged:
        raise DataError(
            f"none of the {len(trials)} trials has a validation, all have diverged: search lower "
            "learning rates, or look at the teacher's scores"
        )
    best = max(judged, key=lambda trial: trial["validation"])  # the first of equals
    folder = Path(inputs[best["trial"]])
    out.mkdir(parents=True, exist_ok=True)
    winner = {**best, "fingerprint": _read(folder / "summary.json")["fingerprint"]}
    if best["ended"] == "complete":
        for name in (*FILES, *TOLD):
            _link(folder / name, out / "winner" / name)
    summary = {
        "measure": search.measure,
        "trials": len(trials),
        "halted": sum(trial["ended"] == "halted" for trial in trials),
        "diverged": sum(trial["ended"] == "diverged" for trial in trials),
        "winner": best,
    }
    with writing(out):
        _write(out / "trials.json", trials)
        _write(out / "winner.json", winner)
        _write(out / "summary.json", summary)
        _write(out / "provenance.json", provenance | {"ended": now()})
        write_manifest(out)


def read_winner(inputs: Mapping[str, Path]) -> Winner:
    """The winner of the input `search`. Raises ConfigError where there is no such input."""
    if "search" not in inputs:
        raise ConfigError("this training takes settings of a search: name its folder as `search`")
    folder = Path(inputs["search"])
    found = _read(folder / "winner.json")
    return Winner(
        settings=found["settings"],
        trial=found["trial"],
        validation=found["validation"],
        fingerprint=found["fingerprint"],
        folder=folder / "winner" if found["ended"] == "complete" else None,
    )


def settle(spec: TrainSpec, winner: Winner) -> TrainSpec:
    """The specification with the winner's settings, as if they had been given.

    Raises ConfigError where they make none: 5,000 warm-up steps of a trial, a run of 4,000 steps.
    """
    given = spec.model_dump(mode="json", exclude={"searched"})
    chosen = {name: winner.settings[name] for name in spec.searched}
    given["optimisation"] |= chosen
    try:
        return TrainSpec.model_validate(given)
    except ValidationError as error:
        raise ConfigError(
            f"the search's winner {chosen} does not fit this run: {error.errors()[0]['msg']}"
        ) from None


def fingerprint(spec: TrainSpec) -> str:
    """SHA-256 of a training's whole specification, whether it is a trial or not.

    Provenance names files without their folders, so it cannot tell that two trainings are one.
    """
    same = spec.model_copy(update={"trial": None, "searched": ()}).model_dump(mode="json")
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def take_over(spec: TrainSpec, winner: Winner, out: Path) -> bool:
    """Take the winning trial's files where it was this very training; False where it was not."""
    if winner.folder is None or winner.fingerprint != fingerprint(spec):
        return False
    if _rank():
        return True
    shutil.rmtree(out, ignore_errors=True)  # of an earlier attempt that was cut short
    for name in FILES:
        _link(winner.folder / name, out / name)
    summary, provenance = (_read(winner.folder / name) for name in TOLD)
    with writing(out):
        _write(out / "summary.json", summary | {"search": winner.pointer})
        told = {"spec": {**provenance["spec"], "trial": None}, "taken_over": now()}
        _write(out / "provenance.json", provenance | told)
        write_manifest(out)
    return True


def note_divergence(spec: TrainSpec, out: Path, error: DivergenceError) -> None:
    """Make the divergence of a trial its result: settings that diverge have lost, not failed."""
    if _rank():
        return
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    provenance = collect(spec.model_dump(mode="json"))
    with writing(out):
        summary = {"best_validation": None, "diverged": str(error)}
        _write(out / "summary.json", summary | {"fingerprint": fingerprint(spec)})
        _write(out / "provenance.json", provenance | {"ended": now()})
        write_manifest(out)


def _rank() -> int:
    """This process's number among those that share the training; the first one writes."""
    return int(os.environ.get("RANK", "0"))


def _trial(role: str, folder: Path, search: SearchSpec) -> dict[str, Any]:
    summary = _read(folder / "summary.json")
    optimisation = _read(folder / "provenance.json")["spec"]["optimisation"]
    ended = "diverged" if "diverged" in summary else "halted" if "halted" in summary else "complete"
    return {
        "trial": role,
        "settings": {name: optimisation[name] for name in search.settings},
        "validation": summary.get("best_validation"),
        "best_step": summary.get("best_step"),
        "steps": summary.get("steps"),
        "ended": ended,
    }


def _link(source: Path, target: Path) -> None:
    """The file or folder under a second name, or a copy where the disk knows no such thing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    elif source.exists():
        _link_file(str(source), str(target))


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
