"""Runs one job of this package from its JSON, as a function or as a program."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from evaluator.manifest import write_manifest
from evaluator.specs import CandidatesSpec, EvaluateSpec, PrepareSpec, TeachSpec
from xsweep import ConfigError

SPECS: dict[str, TypeAdapter] = {
    "prepare": TypeAdapter(PrepareSpec),
    "teach": TypeAdapter(TeachSpec),
    "evaluate": TypeAdapter(EvaluateSpec),
}


def run_job(
    kind: str,
    spec: Mapping[str, Any],
    inputs: Mapping[str, Path | str],
    out: Path,
    report: Callable[..., object] | None = None,
    resume_from: Sequence[Path] = (),
) -> None:
    """Does a job and closes its folder with a manifest.

    `inputs` are the finished folders of other jobs by role; `out` is an empty folder. `report`
    hears (done, total, **figures) and may raise xsweep.Stopped, which is passed on. `teach` and
    `evaluate` go on from the scores that an unfinished attempt at the same job left in `out` or in
    a folder of `resume_from`.

    Raises ConfigError for an unknown kind, a spec that is wrong or an input that is missing.
    """
    if kind not in SPECS:
        raise ConfigError(f"unknown kind of job {kind!r}: use one of {', '.join(SPECS)}")
    try:
        checked = SPECS[kind].validate_python(spec)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'spec'}: {each['msg']}" for each in error.errors()
        )
        raise ConfigError(f"the spec of this {kind} job is wrong: {problems}") from error
    folders = {role: Path(folder) for role, folder in inputs.items()}
    if kind != "prepare" and "candidates" not in folders:
        raise ConfigError(f'a {kind} job needs the input "candidates": a folder that prepare wrote')
    if kind == "prepare" and isinstance(checked, CandidatesSpec):
        from evaluator.candidates import prepare_candidates

        prepare_candidates(checked, folders, out, report)
    elif kind == "prepare":
        from evaluator.tokens import prepare_tokens

        prepare_tokens(checked, folders, out)
    elif kind == "teach":
        from evaluator.teach import teach

        teach(checked, folders, out, report, resume_from)
    else:
        from evaluator.evaluate import evaluate

        evaluate(checked, folders, out, report, resume_from)
    write_manifest(out)
