"""Generated data: data sets of ir_datasets as their downloads, and teachers' files.

Passages are made of invented words and queries repeat words of their relevant passages. Formats are
the published ones, so a rehearsal takes every step of the real loaders, from archive to ids.
"""

import gzip
import hashlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xsweep.errors import ConfigError
from xsweep.evaluator.data.files import atomic_write
from xsweep.evaluator.specs import ColumnsSpec

WORDS = 600

ONSETS, VOWELS, CODAS = "bdfgklmnprstvz", "aeiou", ("", "n", "s")
"""Parts of a syllable; only the last syllable of a word has a coda."""

GRADES = (1, 2, 1, 3)
"""Grades of the relevant passages in graded collections, in turn."""

DOCUMENTS, QUERIES = 40, 6
"""Size of a test collection."""

MSMARCO_DOCUMENTS, MSMARCO_QUERIES = 150, 48
"""Size of the training collection, whose documents the in-domain test sets share."""

TEACHER_DEPTH = 60
"""Documents of each query in a teacher's list: RankZephyr's lists have 50, cut from 500."""

LOTTE_DOMAINS = ("lifestyle", "pooled", "recreation", "science", "technology", "writing")

ROBUST_FILES = {
    "NEWS/FBIS/FB{:06}": 492,
    "NEWS/FR94/01/FR{:06}": 645,
    "NEWS/FT/FT911/FT{:06}": 428,
    "NEWS/LATIMES/LA{:06}": 730,
}
"""Files in Robust04's folder; ir_datasets requires all 2,295."""

Files = Mapping[str, bytes]
"""Content by path below the home of ir_datasets."""


class Corpus(NamedTuple):
    """A small collection."""

    documents: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]

    def judgements(self) -> Iterator[tuple[str, str, int]]:
        """Query, document and grade of every judgement."""
        for query, grades in self.qrels.items():
            for document, grade in grades.items():
                yield query, document, grade


@cache
def words() -> dict[str, int]:
    """The vocabulary of all collections, pronounceable and always the same: word to rank.

    Collections share one vocabulary so that one tokenizer reads them all.
    """
    random = np.random.default_rng(0)
    onsets, vowels = list(ONSETS), list(VOWELS)
    found: dict[str, int] = {}
    while len(found) < WORDS:
        syllables = int(random.integers(1, 4))
        word = "".join(random.choice(onsets) + random.choice(vowels) for _ in range(syllables))
        found.setdefault(word + random.choice(CODAS), len(found))
    return found


def seed_of(name: str) -> int:
    """A seed derived from a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")


def corpus(
    name: str,
    documents: int = DOCUMENTS,
    queries: int = QUERIES,
    *,
    document_ids: str = "{}",
    query_ids: str = "{}",
    first_query: int = 0,
    graded: bool = False,
) -> Corpus:
    """A collection determined by its arguments; every query has two relevant documents.

    `document_ids` and `query_ids` are format strings for numbers; query numbers start at
    `first_query`, so that several query sets can share the documents.
    """
    vocabulary = np.array(list(words()))
    random = np.random.default_rng(seed_of(name))
    # Zipf's law, as in any language: a few words are everywhere, most distinguish documents.
    weights = 1 / np.arange(1, WORDS + 1)
    weights /= weights.sum()
    texts = [
        " ".join(random.choice(vocabulary, size=int(random.integers(12, 40)), p=weights))
        for _ in range(documents)
    ]
    found = Corpus({document_ids.format(row): text for row, text in enumerate(texts)}, {}, {})
    for number in range(first_query, first_query + queries):
        own = np.random.default_rng([seed_of(name), number])
        rows = own.choice(documents, size=2, replace=False).tolist()
        rarest = sorted(set(texts[rows[0]].split()), key=lambda word: -words()[word])[:3]
        query_id = query_ids.format(number)
        found.queries[query_id] = " ".join([*rarest, *own.choice(texts[rows[1]].split(), size=2)])
        grades = GRADES if graded else (1, 1)
        found.qrels[query_id] = {
            document_ids.format(row): grades[(number + place) % len(grades)]
            for place, row in enumerate(rows)
        }
    return found


def write_datasets(home: Path, ids: Iterable[str]) -> None:
    """Generate the data sets with these ids in a folder laid out as ir_datasets' home.

    Existing data sets are kept. Raises ConfigError for an id of another family.
    """
    for dataset in sorted(ids):
        for pattern, (last_file, generate) in FAMILIES.items():
            if match := re.fullmatch(pattern, dataset):
                if not (home / last_file.format(*match.groups())).exists():
                    for path, content in generate(*match.groups()).items():
                        with atomic_write(home / path) as draft:
                            draft.write_bytes(content)
                break
        else:
            raise ConfigError(
                f"a rehearsal cannot generate the data set {dataset!r}: it knows those of "
                "msmarco-passage, beir, nano-beir, lotte and disks45/nocr/trec-robust-2004"
            )


def training_corpus() -> Corpus:
    """MS MARCO's training set, which the teachers' files belong to."""
    return _msmarco_corpus(0, MSMARCO_QUERIES)


def _msmarco_corpus(first_query: int, queries: int = QUERIES, *, graded: bool = False) -> Corpus:
    return corpus("msmarco", MSMARCO_DOCUMENTS, queries, first_query=first_query, graded=graded)


def _msmarco() -> Files:
    train, small = training_corpus(), _msmarco_corpus(1000)
    docpairs = _gzip(triples(train).encode())
    dl19, dl20 = (_msmarco_corpus(first, graded=True) for first in (2000, 3000))
    files = {
        "train/qrels": _trec_qrels(train),
        "train/docpairs.tsv.gz": docpairs,
        "train/qidpidtriples.train.full.2.tsv.gz": docpairs,
        "trec-dl-2019/qrels": _trec_qrels(dl19),
        "trec-dl-2019/queries.tsv": _tsv(dl19.queries),  # ir_datasets stores it unpacked
        "trec-dl-2020/qrels": _trec_qrels(dl20),
        "trec-dl-2020/queries.tsv.gz": _gzip(_tsv(dl20.queries)),
        "queries.tar.gz": _tar(
            {"queries.train.tsv": _tsv(train.queries), "queries.dev.tsv": _tsv(small.queries)}
        ),
        "collectionandqueries.tar.gz": _tar(
            {
                "collection.tsv": _tsv(train.documents),
                "queries.dev.small.tsv": _tsv(small.queries),
                "qrels.dev.small.tsv": _trec_qrels(small, separator=b"\t"),
            }
        ),
    }
    return {f"msmarco-passage/{path}": content for path, content in files.items()}


def triples(data: Corpus, per_query: int = 8) -> str:
    """Lines of query, positive and negative, up to `per_query` for each query."""
    ids = list(data.documents)
    lines = []
    for number, (query, relevant) in enumerate(data.qrels.items()):
        for place in range(per_query):
            positive = list(relevant)[place % len(relevant)]
            negative = ids[(7 * number + 11 * place) % len(ids)]
            if negative not in relevant:
                lines.append(f"{query}\t{positive}\t{negative}\n")
    return "".join(lines)


def _beir(name: str) -> Files:
    data = corpus(f"beir/{name}", document_ids="doc{}", query_ids="test{}")
    # Every field of any data set of BEIR; each loader takes its own.
    metadata = {
        "url": "http://example.org",
        **dict.fromkeys(("pubmed_id", "stance", "description", "narrative", "query"), ""),
        **{"authors": [], "year": 2000, "cited_by": [], "references": [], "tags": []},
    }
    documents = (
        {"_id": key, "title": text.split()[0], "text": text, "metadata": metadata}
        for key, text in data.documents.items()
    )
    texts = data.queries.items()
    queries = ({"_id": key, "text": text, "metadata": metadata} for key, text in texts)
    qrels = "query-id\tcorpus-id\tscore\n" + "".join(
        f"{query}\t{document}\t{grade}\n" for query, document, grade in data.judgements()
    )
    root = name.split("/")[0]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{root}/corpus.jsonl", _jsonl(documents))
        archive.writestr(f"{root}/queries.jsonl", _jsonl(queries))
        for split in ("train", "dev", "test"):
            archive.writestr(f"{root}/qrels/{split}.tsv", qrels)
    return {f"beir/{name}/source.zip": packed.getvalue()}


def _nano_beir(name: str) -> Files:
    import pyarrow
    from pyarrow import parquet

    data = corpus(f"nano/{name}", document_ids="doc{}", query_ids="q{}")
    queries, documents, _ = zip(*data.judgements(), strict=True)
    tables = {
        "corpus": {"_id": list(data.documents), "text": list(data.documents.values())},
        "queries": {"_id": list(data.queries), "text": list(data.queries.values())},
        "qrels": {"query-id": queries, "corpus-id": documents},
    }
    files = {}
    for table, columns in tables.items():
        packed = io.BytesIO()
        parquet.write_table(pyarrow.table(columns), packed)
        files[f"nano-beir/{name}/{table}.parquet"] = packed.getvalue()
    return files


def _lotte() -> Files:
    packed: dict[str, bytes] = {}
    for domain in LOTTE_DOMAINS:
        data = corpus(f"lotte/{domain}")
        answers = [
            {"qid": int(query), "query": data.queries[query], "answer_pids": [*map(int, relevant)]}
            for query, relevant in data.qrels.items()
        ]
        for split in ("dev", "test"):
            root = f"lotte/{domain}/{split}"
            packed[f"{root}/collection.tsv"] = _tsv(data.documents)
            for kind in ("search", "forum"):
                packed[f"{root}/questions.{kind}.tsv"] = _tsv(data.queries)
                packed[f"{root}/qas.{kind}.jsonl"] = _jsonl(answers)
    return {"lotte/lotte.tar.gz": _tar(packed)}


def _robust04() -> Files:
    data = corpus("robust04", document_ids="FBIS3-{}", first_query=301, graded=True)
    documents = (
        f"<DOC>\n<DOCNO> {key} </DOCNO>\n<HEADLINE>\n{text.split()[0]}\n</HEADLINE>\n"
        f"<TEXT>\n{text}\n</TEXT>\n</DOC>\n"
        for key, text in data.documents.items()
    )
    files = {}
    for pattern, count in ROBUST_FILES.items():
        for number in range(count):
            # All files must exist; the first ones have one document each.
            files[f"corpus/{pattern.format(number)}"] = next(documents, "").encode()
    topics = "".join(
        f"<top>\n\n<num> Number: {query}\n<title> {text}\n\n<desc> Description:\n{text}\n\n"
        f"<narr> Narrative:\n{text}\n\n</top>\n\n"
        for query, text in data.queries.items()
    )
    files["04.testset.gz"] = _gzip(topics.encode())
    files["qrels.robust2004.txt"] = _trec_qrels(data)
    return {f"disks45/{path}": content for path, content in files.items()}


FAMILIES: Mapping[str, tuple[str, Callable[..., Files]]] = {
    r"msmarco-passage(?:/.*)?": ("msmarco-passage/collectionandqueries.tar.gz", _msmarco),
    r"beir/(webis-touche2020/v2|[^/]+)(?:/.*)?": ("beir/{}/source.zip", _beir),
    r"nano-beir/(.+)": ("nano-beir/{}/qrels.parquet", _nano_beir),
    r"lotte/.*": ("lotte/lotte.tar.gz", _lotte),
    r"disks45/nocr(?:/trec-robust-2004.*)?": ("disks45/qrels.robust2004.txt", _robust04),
}
"""Pattern of ids, the file that is written last, and the generator of all files."""


def write_teacher(path: Path, form: str, columns: ColumnsSpec | None = None) -> None:
    """Generate a teacher's file unless it exists; `form` is the key that names it in a grid.

    The content depends on the file's name, and on the columns of a Parquet file. Raises ConfigError
    for an unsupported form.
    """
    if path.exists():
        return
    random = np.random.default_rng(seed_of(path.name))
    if columns:
        content = _parquet(training_corpus(), random, columns)
    elif form in TEACHER_FILES:
        content = TEACHER_FILES[form](training_corpus(), random)
    else:
        known = ", ".join(TEACHER_FILES)
        raise ConfigError(f"a rehearsal generates no {form!r} file: it knows {known}")
    with atomic_write(path) as draft:
        draft.write_bytes(content)


def _ranked(data: Corpus, query: str, random: np.random.Generator) -> list[tuple[str, float]]:
    """A query's documents with scores, best first; relevant ones score well above chance."""
    ids = list(data.documents)
    score = dict(zip(ids, random.normal(0, 2, len(ids)).round(6).tolist(), strict=True))
    for document in data.qrels[query]:
        score[document] += 5
    return sorted(score.items(), key=lambda each: (-each[1], each[0]))[:TEACHER_DEPTH]


def _lists(data: Corpus, random: np.random.Generator, *, line: str) -> bytes:
    return "".join(
        line.format(query, document, rank, score)
        for query in data.queries
        for rank, (document, score) in enumerate(_ranked(data, query, random), 1)
    ).encode()


def _score_triples(data: Corpus, random: np.random.Generator) -> bytes:
    lines = triples(data).splitlines()
    scores = random.normal((4, -4), 3, (len(lines), 2)).round(6).tolist()
    return "".join(
        f"{high}\t{low}\t{line}\n" for (high, low), line in zip(scores, lines, strict=True)
    ).encode()


def _passages(data: Corpus, random: np.random.Generator) -> bytes:
    lines = []
    for query, text in data.queries.items():
        passages = [
            {
                "docid": document,
                "text": data.documents[document],
                "label": int(document in data.qrels[query]),
                "teacher_score": score,
            }
            for document, score in _ranked(data, query, random)[:20]
        ]
        lines.append({"query_id": query, "query": text, "passages": passages})
    return _jsonl(lines)


def _parquet(data: Corpus, random: np.random.Generator, columns: ColumnsSpec) -> bytes:
    """A row for each document of a query's list, with a negative beside it if columns name one."""
    import pyarrow
    import pyarrow.parquet

    rows = []
    for query in data.queries:
        ranked, relevant = _ranked(data, query, random)[:20], sorted(data.qrels[query])
        for document, score in ranked:
            row = {"query": query, "document": document, "positive": relevant[0]}
            row["negative"] = next(other for other, _ in ranked if other not in relevant)
            texts = {name: {**data.queries, **data.documents}[row[name]] for name in row}
            ids = {f"{name}_id": text_id for name, text_id in row.items()}
            label = int(document in relevant)
            rows.append({**texts, **ids, "score": score, "label": label, "positive_ids": relevant})
    named = columns.model_dump(exclude_none=True)
    table = {column: [row[meaning] for row in rows] for meaning, column in named.items()}
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table), file)
    return file.getvalue()


TEACHER_FILES: Mapping[str, Callable[[Corpus, np.random.Generator], bytes]] = {
    "run": partial(_lists, line="{} 0 {} {} {:.6f} rehearsal\n"),
    "scores": partial(_lists, line="{0}\t{1}\t{3:.6f}\n"),
    "triples": lambda data, _: triples(data).encode(),
    "score_triples": _score_triples,
    "jsonl": _passages,
}


def _trec_qrels(data: Corpus, separator: bytes = b" ") -> bytes:
    return b"".join(
        separator.join((query.encode(), b"0", document.encode(), b"%d\n" % grade))
        for query, document, grade in data.judgements()
    )


def _tsv(texts: Mapping[str, str]) -> bytes:
    return "".join(f"{key}\t{text}\n" for key, text in texts.items()).encode()


def _jsonl(values: Iterable[Mapping[str, object]]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def _tar(files: Files) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()
