"""Files of the study's sources in their real formats, of any size, for benchmarks."""

import gzip
import json
import tarfile
import tempfile
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np

PASSAGES, QUERIES = 8_841_823, 502_939
"""As many as MS MARCO has, so that ids have real lengths."""
CHUNK = 200_000
WORDS = 56
"""Mean words of a passage of MS MARCO's."""


def _chunks(count: int) -> Iterator[int]:
    for done in range(0, count, CHUNK):
        yield min(CHUNK, count - done)


def write_triples(home: Path, lines: int) -> None:
    """MS MARCO's qidpidtriples.train.full.2.tsv.gz where ir_datasets looks for it."""
    path = home / "msmarco-passage/train/qidpidtriples.train.full.2.tsv.gz"
    path.parent.mkdir(parents=True)
    random = np.random.default_rng(0)
    with gzip.open(path, "wt", compresslevel=1) as file:
        for count in _chunks(lines):
            queries = random.integers(0, QUERIES, count).tolist()
            passages = random.integers(0, PASSAGES, (count, 2)).tolist()
            file.writelines(
                f"{query}\t{positive}\t{negative}\n"
                for query, (positive, negative) in zip(queries, passages, strict=True)
            )


def write_run(folder: Path, queries: int, depth: int) -> None:
    """A TREC run as Rank-DistiLLM's files are, with ties."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    ids = random.choice(QUERIES, queries, replace=False).tolist()
    with (folder / "a.run").open("w") as file:
        for query in ids:
            docs = random.choice(PASSAGES, depth, replace=False).tolist()
            scores = np.sort(random.normal(20, 4, depth).round(3))[::-1].tolist()
            file.writelines(
                f"{query} 0 {doc} {rank} {score} colbert\n"
                for rank, (doc, score) in enumerate(zip(docs, scores, strict=True), 1)
            )


def _texts(count: int) -> Iterator[str]:
    random = np.random.default_rng(1)
    vocabulary = np.array(
        ["".join(word) for word in random.choice(list("abcdefghilmnoprstu"), (5000, 6))]
    )
    for many in _chunks(count):
        lengths = random.integers(WORDS - 26, WORDS + 27, many)
        words = vocabulary[random.zipf(1.3, int(lengths.sum())) % 5000]
        for part in np.split(words, np.cumsum(lengths)[:-1]):
            yield " ".join(part)


def write_jsonl(folder: Path, lines: int) -> None:
    """Queries with 50 passages of text each."""
    folder.mkdir(parents=True)
    texts = _texts(lines * 50)
    with (folder / "a.jsonl").open("w") as file:
        for number in range(lines):
            passages = [
                {"text": text, "label": int(place == 0), "teacher_score": float(-place)}
                for place, text in enumerate(islice(texts, 50))
            ]
            file.write(json.dumps({"query": f"query {number}", "passages": passages}) + "\n")


def write_passages(home: Path, passages: int) -> None:
    """MS MARCO's collectionandqueries.tar.gz where ir_datasets looks for it."""
    path = home / "msmarco-passage/collectionandqueries.tar.gz"
    path.parent.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        plain = Path(work, "collection.tsv")
        with plain.open("w") as file:
            file.writelines(f"{row}\t{text}\n" for row, text in enumerate(_texts(passages)))
        with tarfile.open(path, "w:gz", compresslevel=1) as packed:
            packed.add(plain, "collection.tsv")
            packed.addfile(tarfile.TarInfo("queries.dev.small.tsv"), BytesIO())
