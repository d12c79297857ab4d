"""`python -m xsweep.evaluator SPEC.json OUT`: one job, without database and cluster.

SPEC.json holds {"kind": "evaluate", "spec": {...}, "inputs": {"candidates": FOLDER, ...}}. A killed
job resumes from the scores that it saved in OUT.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from xsweep.errors import ConfigError, XsweepError
from xsweep.evaluator.jobs import PARTIAL_FOLDER, read_job, run_job

USAGE = "usage: python -m xsweep.evaluator SPEC.json OUT"


def main(arguments: Sequence[str]) -> int:
    """Runs the job; returns 0, or the error's exit code after one message on stderr."""
    if len(arguments) != 2:
        print(USAGE, file=sys.stderr)
        return 2
    source, out = Path(arguments[0]), Path(arguments[1])
    try:
        job = read_job(source)
        if out.is_dir() and {path.name for path in out.iterdir()} - {PARTIAL_FOLDER}:
            raise ConfigError(f"{out} is not empty: name a new folder")
        out.mkdir(parents=True, exist_ok=True)
        run_job(job["kind"], job["spec"], job["inputs"], out, _print_progress)
    except XsweepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _print_progress(done: int, total: int, **figures: float) -> None:
    if sys.stderr.isatty():
        rest = " ".join(f"{name} {value:g}" for name, value in figures.items())
        print(f"\r{done}/{total} {rest}   ", end="\n" if done == total else "", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
