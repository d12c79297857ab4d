"""`python -m xsweep.trainer SPEC.json OUT`: one training as a plain program.

SPEC.json is `{"kind": "train", "spec": {...}, "inputs": {role: folder}}`. On SIGTERM or SIGINT it
saves a checkpoint after the current step and exits. Run again with the same OUT, it resumes from
the last checkpoint.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from xsweep.errors import Stopped, XsweepError
from xsweep.evaluator.jobs import read_job

PRINT_EVERY_S = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Runs the job in a file and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m xsweep.trainer", description=__doc__)
    parser.add_argument("spec", type=Path, help="JSON file with kind, spec and inputs")
    parser.add_argument("out", type=Path, help="folder for the result")
    options = parser.parse_args(arguments)
    try:
        job = read_job(options.spec)
        from xsweep.trainer.train import run_job

        kind, spec, inputs = job["kind"], job["spec"], job["inputs"]
        run_job(kind, spec, inputs, options.out, _reporter(), resume_from=[options.out])
    except XsweepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _reporter() -> Callable[..., None]:
    """A function that prints progress, and stops the training after a step if a signal came."""
    printed_s = -PRINT_EVERY_S
    received: list[signal.Signals] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: received.append(signal.Signals(number)))

    def report(done: int, total: int, **figures: float) -> None:
        nonlocal printed_s
        now_s = time.monotonic()
        if done == total or now_s - printed_s > PRINT_EVERY_S:
            printed_s = now_s
            shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            print(f"step {done}/{total}  {shown}", flush=True)
        if received:
            name = received[0].name
            raise Stopped(f"stopped by {name} after step {done}: the same command resumes it")

    return report


if __name__ == "__main__":
    sys.exit(main())
