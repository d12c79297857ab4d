"""`make cluster-test`: faults on a cluster of three hosts, and a table of what became of the jobs.

`python -m tests.cluster [WORD…]` tries faults whose names contain a word, in the words' order.
"""

import sys
import time

from tests.cluster.hosts import enter


def main(words: list[str]) -> int:
    """Runs the trials and prints the table; 1 where one has not passed."""
    from tests.cluster.faults import FAULTS
    from tests.cluster.site import Site
    from tests.cluster.trial import calm_report, table, try_fault

    began_s = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - began_s:6.0f} s  {text}", flush=True)

    chosen = {
        name: inflict for word in words or [""] for name, inflict in FAULTS.items() if word in name
    }
    site = Site()
    trials = []
    try:
        site.start()
        tell("three hosts are up")
        calm = calm_report(site)
        tell("an undisturbed run")
        for name, inflict in chosen.items():
            trials.append(try_fault(site, name, inflict, calm))
            tell(f"{'FAILED' if trials[-1].problems else 'passed'}  {table(trials)[-1]}")
            for problem in trials[-1].problems:
                print(problem)
                print(site.tails(), flush=True)
    except BaseException:
        print(site.tails(), flush=True)
        raise
    finally:
        site.close()
    print("\n".join(table(trials)))
    failed = [trial.fault for trial in trials if trial.problems]
    tell(f"{len(trials)} faults, {len(failed)} of them not withstood")
    return 1 if failed else 0


if __name__ == "__main__":
    enter("tests.cluster")
    sys.exit(main(sys.argv[1:]))
