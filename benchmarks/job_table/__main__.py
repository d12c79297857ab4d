"""How fast jobs are claimed and finished, beside procrastinate and huey; growth; cost of watching.

    python benchmarks/job_table throughput [--jobs 2000] [--at-once 1 32] [--server URL]
    python benchmarks/job_table growth [--sizes 1000 10000 100000] [--million]
    python benchmarks/job_table watch [--sizes 100000] [--seconds 60]

Every contestant gets the same number of jobs that do nothing, in the same PostgreSQL server (one is
started in a temporary folder, with its usual settings) or in a SQLite file in the same folder, and
the same processes work them off. Rates count from the first claim to the last end; a ratio says by
how much xsweep is better, in rate and in CPU. `at once` is how many jobs a process holds together:
the limit of a claim and of `finish` here, the concurrency of a worker there. The controller
claims as many as it has room for, and accepts together what ended together.

xsweep claims, accepts a result and wakes children; procrastinate is measured as its own worker, and
as bare calls of its two database functions, which is what no worker can beat. huey removes a task
from its table when it is fetched: what its process held when it died is lost, so it shows the price
of leases and history, not an equal.
"""

import argparse
import json
import sys

from growth import growth, measure
from throughput import throughput
from watching import watching


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["throughput", "growth", "watch", "measure"])
    parser.add_argument("--server", help="a PostgreSQL server's URL, .../postgres?...")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--million", action="store_true", help="a million jobs, too: minutes")
    parser.add_argument("--seconds", type=float, default=60)
    both = ["sqlite", "postgresql"]
    parser.add_argument("--databases", nargs="+", type=str.lower, choices=both, default=both)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--pid", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what == "measure":
        print(json.dumps(measure(options.url, options.sizes[0], options.pid or None)))
        return 0
    if options.what == "throughput":
        throughput(options)
        return 0
    if options.what == "watch":
        options.sizes = options.sizes or [100_000]
        return watching(options)
    options.sizes = options.sizes or [1_000, 10_000, 100_000]
    options.sizes += [1_000_000] if options.million else []
    return growth(options)


if __name__ == "__main__":
    sys.exit(main())
