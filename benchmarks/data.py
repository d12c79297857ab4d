"""A teacher's score file: how fast it is indexed, and how fast shuffled pairs come out of it.

    OMP_NUM_THREADS=1 python benchmarks/data.py [--lines 40000000] [--pairs 500000] [--home DIR]

Writes a file in the form of Hofstätter et al.'s teacher scores (positive score, negative score,
query, positive, negative id) once, then opens it as a training does, in a process of its own:
reading its checksum and its index. Then it draws global batches in the training's shuffled order,
and again from a step in the middle in a fresh teacher, which must give the same pairs.
"""

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PASSAGES, QUERIES = 8_841_823, 400_000
"""As many as MS MARCO has, so that ids have real lengths."""
BATCH = 32
CHUNK = 1_000_000


class Ids:
    """All ids of a collection, known without keeping them: this is no measure of token stores."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __contains__(self, text_id: object) -> bool:
        return int(str(text_id)) < self.count


def write_scores(path: Path, lines: int) -> None:
    """The file, in chunks; its content is a function of the number of lines."""
    random = np.random.default_rng(0)
    with path.open("w") as file:
        for done in range(0, lines, CHUNK):
            count = min(CHUNK, lines - done)
            scores = random.normal(0, 6, (count, 2)).round(6).tolist()
            queries = random.integers(0, QUERIES, count).tolist()
            passages = random.integers(0, PASSAGES, (count, 2)).tolist()
            file.writelines(
                f"{high}\t{low}\t{query}\t{positive}\t{negative}\n"
                for (high, low), query, (positive, negative) in zip(
                    scores, queries, passages, strict=True
                )
            )


def draw(teacher, steps: range) -> Iterator[tuple]:
    """Every pair of some global batches."""
    from xsweep.trainer.batching import draw_samples

    for step in steps:
        for query_id, doc_ids, targets_D, _ in draw_samples(teacher, 12, step, BATCH):
            yield query_id, doc_ids, targets_D[0], targets_D[1]


def digest(pairs: Iterator[tuple]) -> str:
    """One checksum of pairs."""
    found = hashlib.sha256()
    for pair in pairs:
        found.update(repr(pair).encode())
    return found.hexdigest()[:16]


def measure(path: Path, pairs: int) -> None:
    """Opens, draws, and draws again from the middle."""
    import xsweep.trainer.batching  # noqa: F401 - its imports are no part of what is measured
    from xsweep.evaluator.data.collection import Collection
    from xsweep.evaluator.data.files import checksum
    from xsweep.trainer.teachers.formats import ScoreTriplesSource
    from xsweep.trainer.teachers.pairs import open_pairs

    collection = Collection("generated", lambda: iter(()), Ids(QUERIES), {})
    source = ScoreTriplesSource(file={"path": str(path)})
    started = time.perf_counter()
    checksum(path, "md5")
    checked = time.perf_counter()
    teacher = open_pairs(source, collection, Ids(PASSAGES))
    opened = time.perf_counter()
    next(draw(teacher, range(1)))
    ordered = time.perf_counter()
    print(f"{len(teacher):,} lines, {path.stat().st_size / 1e9:.2f} GB")
    print(f"checksum {checked - started:8.1f} s")
    print(f"index    {opened - checked:8.1f} s")
    print(f"shuffle  {ordered - opened:8.1f} s")
    steps = range(pairs // BATCH)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in draw(teacher, steps):
        pass
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    print(
        f"draw     {BATCH * len(steps) / wall_s:8,.0f} pairs/s, "
        f"{BATCH * len(steps) / cpu_s:,.0f} pairs per CPU second"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak     {peak:8.2f} GB")
    late = range(len(steps) // 2, len(steps) // 2 + 500)
    again = open_pairs(source, collection, Ids(PASSAGES))
    same = digest(draw(teacher, late)) == digest(draw(again, late))
    print(f"resumed at step {late.start}: {'the same pairs' if same else 'OTHER PAIRS'}")
    if not same:
        sys.exit(1)


def main() -> None:
    """Writes the file where it is missing and measures in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=4_000_000)
    parser.add_argument("--pairs", type=int, default=500_000, help="pairs to draw")
    parser.add_argument("--home", type=Path, help="where the file stays; else it is removed")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.pairs)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = (options.home or Path(folder)) / f"scores-{options.lines}.tsv"
        if not path.exists():
            unfinished = path.with_suffix(".part")
            write_scores(unfinished, options.lines)
            unfinished.rename(path)
        command = [sys.executable, __file__, "--measure", str(path), "--pairs", str(options.pairs)]
        root = Path(__file__).resolve().parent.parent
        environment = os.environ | {"PYTHONPATH": str(root)}
        sys.exit(subprocess.run(command, check=False, env=environment).returncode)


if __name__ == "__main__":
    main()
