"""A teacher's score file: how fast it is indexed, and how fast shuffled pairs come out of it.

    OMP_NUM_THREADS=1 python benchmarks/data.py [--lines 40000000] [--pairs 500000] [--home DIR]
        [--form tsv|margins|texts|lists]

Writes a file in the form of Hofstätter et al.'s teacher scores (positive score, negative score,
query, positive, negative id) once, or a Parquet file: their margins as sentence-transformers
publishes them, texts of queries and documents with a score (one sample a row), or scored rows of
100 documents a query that make lists. Then opens it as a training does, in a process of its own:
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

    def __getitem__(self, text_id: str) -> str:
        return ""


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


COLUMNS = {
    "margins": {name: name for name in ("query_id", "positive_id", "negative_id", "score")},
    "texts": {"query": "query", "document": "document", "score": "label"},
    "lists": {"query_id": "query_id", "document_id": "passage_id", "score": "score"},
}
WORDS = "what is the meaning of this passage and who wrote it down for us "


def write_parquet(path: Path, lines: int, form: str) -> None:
    """A Parquet file with the columns of a published data set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random, writer = np.random.default_rng(0), None
    for done in range(0, lines, CHUNK):
        count = min(CHUNK, lines - done)
        scores = random.normal(0, 6, count)
        passages = random.integers(0, PASSAGES, (2, count)).astype(str)
        if form == "texts":
            starts = random.integers(0, 40, count).tolist()
            table = {
                "query": [f"{WORDS[start:]}{done + row}" for row, start in enumerate(starts)],
                "document": [WORDS[start:] + WORDS * 5 for start in starts],
                "label": pa.array(scores, pa.float32()),
            }
        elif form == "margins":
            queries = random.integers(0, QUERIES, count).astype(str)
            table = {"query_id": queries, "positive_id": passages[0], "negative_id": passages[1]}
            table["score"] = scores
        else:
            rows = np.arange(done, done + count)  # of a query and of passages that differ
            table = {"query_id": (rows // 100).astype(str), "score": scores}
            table["passage_id"] = (rows * 7919 % PASSAGES).astype(str)
        batch = pa.table(table)
        writer = writer or pq.ParquetWriter(path, batch.schema)
        writer.write_table(batch)
    writer.close()


def draw(teacher, steps: range) -> Iterator[tuple]:
    """Every sample of some global batches."""
    from xsweep.trainer.batching import draw_samples

    for step in steps:
        for query_id, doc_ids, targets_D, _ in draw_samples(teacher, 12, step, BATCH):
            yield query_id, doc_ids, *targets_D


def digest(pairs: Iterator[tuple]) -> str:
    """One checksum of pairs."""
    found = hashlib.sha256()
    for pair in pairs:
        found.update(repr(pair).encode())
    return found.hexdigest()[:16]


def measure(path: Path, pairs: int, form: str) -> None:
    """Opens, draws, and draws again from the middle."""
    import xsweep.trainer.batching  # noqa: F401 - its imports are no part of what is measured
    from xsweep.evaluator.data.collection import Collection
    from xsweep.evaluator.data.files import checksum
    from xsweep.trainer.specs import TeacherSpec
    from xsweep.trainer.train import open_teacher

    collection = Collection("generated", lambda: iter(()), Ids(QUERIES), {})
    source = {"type": "score_triples", "file": {"path": str(path)}}
    if form != "tsv":
        source |= {"type": "parquet", "columns": COLUMNS[form], "lists": form == "lists"}
    if form == "texts":
        collection = Collection("generated", lambda: iter(()), {}, {})
    spec = TeacherSpec.model_validate({"signal": "scores", "source": source})
    if form == "lists":
        spec = spec.model_copy(update={"list_size": 8})
    documents = Ids(2**40)
    started = time.perf_counter()
    checksum(path, "md5")
    checked = time.perf_counter()
    teacher = open_teacher(spec, collection, documents, {})
    opened = time.perf_counter()
    next(draw(teacher, range(1)))
    ordered = time.perf_counter()
    print(f"{form}: {len(teacher):,} units, {path.stat().st_size / 1e9:.2f} GB")
    print(f"checksum {checked - started:8.1f} s")
    print(f"index    {opened - checked:8.1f} s")
    print(f"shuffle  {ordered - opened:8.1f} s")
    steps = range(pairs // BATCH)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    drawn = sum(len(sample[1]) for sample in draw(teacher, steps))
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    print(f"draw     {drawn / wall_s:8,.0f} documents/s, {drawn / cpu_s:,.0f} per CPU second")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak     {peak:8.2f} GB")
    late = range(len(steps) // 2, len(steps) // 2 + 500)
    again = open_teacher(spec, collection, documents, {})
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
    parser.add_argument("--form", choices=["tsv", *COLUMNS], default="tsv")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.pairs, options.form)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = (options.home or Path(folder)) / f"{options.form}-{options.lines}.data"
        if not path.exists():
            unfinished = path.with_suffix(".part")
            if options.form == "tsv":
                write_scores(unfinished, options.lines)
            else:
                write_parquet(unfinished, options.lines, options.form)
            unfinished.rename(path)
        command = [sys.executable, __file__, "--measure", str(path), "--form", options.form]
        command += ["--pairs", str(options.pairs)]
        root = Path(__file__).resolve().parent.parent
        environment = os.environ | {"PYTHONPATH": str(root)}
        sys.exit(subprocess.run(command, check=False, env=environment).returncode)


if __name__ == "__main__":
    main()
