"""`python -m xsweep.evaluator SPEC.json OUT`: one job, without database and cluster.

SPEC.json holds {"kind": "evaluate", "spec": {...}, "inputs": {"candidates": FOLDER, ...}}. A killed
job resumes from the scores that it saved in OUT.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from xsweep.errors import ConfigError, XsweepError
from xsweep.evaluator.jobs import PARTIAL_FOLDER, run_job

USAGE = "usage: python -m xsweep.evaluator SPEC.json OUT"


def main(arguments: Sequence[str]) -> int:
    """Runs the job; returns 0, or the error's exit code after one message on stderr."""
    if len(arguments) != 2:
        print(USAGE, file=sys.stderr)
        return 2
    source, out = Path(arguments[0]), Path(arguments[1])
    try:
        job = _read(source)
        if out.is_dir() and {path.name for path in out.iterdir()} - {PARTIAL_FOLDER}:
            raise ConfigError(f"{out} is not empty: name a new folder")
        out.mkdir(parents=True, exist_ok=True)
        run_job(job["kind"], job["spec"], job.get("inputs", {}), out, _print_progress)
    except XsweepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _read(source: Path) -> dict:
    try:
        job = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{source}: not JSON: {error}") from error
    if not isinstance(job, dict) or not {"kind", "spec"} <= job.keys():
        raise ConfigError(f'{source}: expected an object with "kind", "spec" and "inputs"')
    return job


def _print_progress(done: int, total: int, **figures: float) -> None:
    if sys.stderr.isatty():
        rest = " ".join(f"{name} {value:g}" for name, value in figures.items())
        print(f"\r{done}/{total} {rest}   ", end="\n" if done == total else "", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
