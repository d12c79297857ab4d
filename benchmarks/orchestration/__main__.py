"""What running jobs through xsweep costs, beside raw Ray tasks and Ray Tune.

    python benchmarks/orchestration overhead [--jobs 200] [--slots 2]
    python benchmarks/orchestration study [--slots 32] [--scale 100]

`overhead`: the same number of jobs that do nothing, one after the other on the same local Ray
cluster; wall time and CPU of the controlling process and of the whole cluster for each job. xsweep
writes and checks a folder for each job and keeps its row, lease and history; a raw task returns
None; a trial of Tune reports one number.

`study`: 162 trainings and 3,564 evaluations that wait as long as the forecast of the study says,
divided by `--scale`. The ideal schedule is the same queue on the same slots without any overhead,
by the longest chain alone; beside it stands the order of the claims, which evaluates early.
Exit code 1 if a bar is missed: overhead at most half of Tune's, 95% of the ideal schedule, a tenth
of a core for the controller, memory that does not grow.
"""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["overhead", "study"])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--scale", type=float, default=100)
    parser.add_argument("--trainings", type=int, default=162)
    options = parser.parse_args()
    here = Path(__file__).parent
    # workers import the programs of simulated jobs by name
    paths = [str(here.parents[1]), str(here), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    from overhead import overhead
    from study import study

    with TemporaryDirectory(prefix="xsweep-benchmark-", dir="/tmp") as folder:
        if options.what == "overhead":
            return overhead(Path(folder), options.jobs, options.slots or 2)
        return study(Path(folder), options.trainings, options.slots or 32, options.scale)


if __name__ == "__main__":
    sys.exit(main())
