"""Small files of teachers in the published forms, over the generated training collection."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from xsweep.errors import ConfigError
from xsweep.evaluator.data.files import atomic_write
from xsweep.orchestrator.rehearsal.corpus import Corpus, seed_of
from xsweep.orchestrator.rehearsal.datasets import training, triples

DEPTH = 60
"""Documents of each query's list: RankZephyr's lists have 50, cut from 500."""


def write_teacher(path: Path, form: str) -> None:
    """Writes a teacher's file, unless it is there; `form` is the key that names it in a grid.

    The content depends on the file's name. Raises ConfigError for a form that none is made of.
    """
    if path.exists():
        return
    of = training()
    random = np.random.default_rng(seed_of(path.name))
    writers: dict[str, Callable[[Corpus, np.random.Generator], str]] = {
        "run": _run,
        "scores": _scores,
        "triples": lambda of, random: triples(of),
        "score_triples": _score_triples,
        "jsonl": _jsonl,
    }
    if form not in writers:
        raise ConfigError(f"a rehearsal generates no {form!r} file: it knows {', '.join(writers)}")
    text = writers[form](of, random)
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _ranked(of: Corpus, query: str, random: np.random.Generator) -> list[tuple[str, float]]:
    """A query's list with scores, best first; the relevant documents stand well above chance."""
    ids = list(of.documents)
    score = dict(zip(ids, random.normal(0, 2, len(ids)).round(6).tolist(), strict=True))
    for doc in of.qrels[query]:
        score[doc] += 5
    return sorted(score.items(), key=lambda each: (-each[1], each[0]))[:DEPTH]


def _run(of: Corpus, random: np.random.Generator) -> str:
    return "".join(
        f"{query} 0 {doc} {rank} {score:.6f} rehearsal\n"
        for query in of.queries
        for rank, (doc, score) in enumerate(_ranked(of, query, random), 1)
    )


def _scores(of: Corpus, random: np.random.Generator) -> str:
    return "".join(
        f"{query}\t{doc}\t{score:.6f}\n"
        for query in of.queries
        for doc, score in _ranked(of, query, random)
    )


def _score_triples(of: Corpus, random: np.random.Generator) -> str:
    lines = triples(of).splitlines()
    scores = random.normal((4, -4), 3, (len(lines), 2)).round(6).tolist()
    return "".join(
        f"{high}\t{low}\t{line}\n" for (high, low), line in zip(scores, lines, strict=True)
    )


def _jsonl(of: Corpus, random: np.random.Generator) -> str:
    lines = []
    for query, text in of.queries.items():
        passages = [
            {
                "docid": doc,
                "text": of.documents[doc],
                "label": int(doc in of.qrels[query]),
                "teacher_score": score,
            }
            for doc, score in _ranked(of, query, random)[:20]
        ]
        lines.append(json.dumps({"query_id": query, "query": text, "passages": passages}) + "\n")
    return "".join(lines)
