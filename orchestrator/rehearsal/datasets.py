"""Small data sets of ir_datasets, generated as the files that a download would leave.

ir_datasets reads them by its own loaders, so a rehearsal takes every step from archive to ids.
"""

import gzip
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from xsweep.errors import ConfigError
from xsweep.evaluator.data.files import atomic_write
from xsweep.orchestrator.rehearsal.corpus import Corpus, corpus

DOCUMENTS, QUERIES = 40, 6
"""Of one test collection."""


MSMARCO_DOCUMENTS, MSMARCO_QUERIES = 150, 48
"""Of the training collection, whose documents the in-domain sets share."""


ROBUST_FILES = {
    "NEWS/FBIS/FB{:06}": 492,
    "NEWS/FR94/01/FR{:06}": 645,
    "NEWS/FT/FT911/FT{:06}": 428,
    "NEWS/LATIMES/LA{:06}": 730,
}
"""Files below Robust04's folder; ir_datasets counts that there are 2,295."""


LOTTE = ("lifestyle", "pooled", "recreation", "science", "technology", "writing")


def write_datasets(home: Path, ids: Iterable[str]) -> None:
    """Adds the data sets with these ids of ir_datasets to a folder laid out as its home.

    What is there already stays. Raises ConfigError for an id of a family that cannot be generated.
    """
    for dataset in sorted(ids):
        for pattern, write in FAMILIES.items():
            if match := re.fullmatch(pattern, dataset):
                write(home, *match.groups())
                break
        else:
            raise ConfigError(
                f"a rehearsal cannot generate the data set {dataset!r}: it knows those of "
                "msmarco-passage, beir, nano-beir, lotte and disks45/nocr/trec-robust-2004"
            )


def msmarco(first_query: int, queries: int, *, graded: bool = False) -> Corpus:
    """MS MARCO's passages with some of its queries; numbers are ids, as there."""
    return corpus("msmarco", MSMARCO_DOCUMENTS, queries, first_query=first_query, graded=graded)


def training() -> Corpus:
    """MS MARCO's training set, which the teachers' files belong to."""
    return msmarco(0, MSMARCO_QUERIES)


def _write_msmarco(home: Path) -> None:
    folder = home / "msmarco-passage"
    if (folder / "collectionandqueries.tar.gz").exists():
        return
    train, small = training(), msmarco(1000, QUERIES)
    _write(folder / "train/qrels", _trec_qrels(train).encode())
    for name in ("docpairs.tsv.gz", "qidpidtriples.train.full.2.tsv.gz"):
        _write(folder / "train" / name, _packed(triples(train)))
    for year, first in ((2019, 2000), (2020, 3000)):
        judged = msmarco(first, QUERIES, graded=True)
        _write(folder / f"trec-dl-{year}/qrels", _trec_qrels(judged).encode())
        lines = _tsv(judged.queries)
        if year == 2019:  # ir_datasets unpacks this one into its home
            _write(folder / "trec-dl-2019/queries.tsv", lines.encode())
        else:
            _write(folder / "trec-dl-2020/queries.tsv.gz", _packed(lines))
    _write(
        folder / "queries.tar.gz",
        _tar({"queries.train.tsv": _tsv(train.queries), "queries.dev.tsv": _tsv(small.queries)}),
    )
    packed = {
        "collection.tsv": _tsv(train.documents),
        "queries.dev.small.tsv": _tsv(small.queries),
        "qrels.dev.small.tsv": _trec_qrels(small, separator="\t"),
    }
    _write(folder / "collectionandqueries.tar.gz", _tar(packed))


def triples(of: Corpus, each: int = 8) -> str:
    """Lines `query, positive, negative`, some of every query."""
    ids = list(of.documents)
    lines = []
    for number, (query, relevant) in enumerate(of.qrels.items()):
        for place in range(each):
            positive = list(relevant)[place % len(relevant)]
            negative = ids[(7 * number + 11 * place) % len(ids)]
            if negative not in relevant:
                lines.append(f"{query}\t{positive}\t{negative}\n")
    return "".join(lines)


def _write_beir(home: Path, name: str) -> None:
    path = home / "beir" / name / "source.zip"
    if path.exists():
        return
    made = corpus(f"beir/{name}", DOCUMENTS, QUERIES, document_ids="doc{}", query_ids="test{}")
    # Every field that some data set of BEIR has; each loader takes its own.
    further = {
        "url": "http://example.org",
        **dict.fromkeys(("pubmed_id", "stance", "description", "narrative", "query"), ""),
        **{"authors": [], "year": 2000, "cited_by": [], "references": [], "tags": []},
    }
    documents = "".join(
        json.dumps({"_id": key, "title": text.split()[0], "text": text, "metadata": further}) + "\n"
        for key, text in made.documents.items()
    )
    queries = "".join(
        json.dumps({"_id": key, "text": text, "metadata": further}) + "\n"
        for key, text in made.queries.items()
    )
    qrels = "query-id\tcorpus-id\tscore\n" + "".join(
        f"{query}\t{doc}\t{grade}\n" for query, doc, grade in _judgements(made)
    )
    root = name.split("/")[0]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{root}/corpus.jsonl", documents)
        archive.writestr(f"{root}/queries.jsonl", queries)
        for split in ("train", "dev", "test"):
            archive.writestr(f"{root}/qrels/{split}.tsv", qrels)
    _write(path, packed.getvalue())


def _write_nano(home: Path, name: str) -> None:
    import pyarrow
    from pyarrow import parquet

    folder = home / "nano-beir" / name
    if (folder / "qrels.parquet").exists():
        return
    made = corpus(f"nano/{name}", DOCUMENTS, QUERIES, document_ids="doc{}", query_ids="q{}")
    judged = list(_judgements(made))
    tables = {
        "corpus": {"_id": list(made.documents), "text": list(made.documents.values())},
        "queries": {"_id": list(made.queries), "text": list(made.queries.values())},
        "qrels": {
            "query-id": [query for query, _, _ in judged],
            "corpus-id": [doc for _, doc, _ in judged],
        },
    }
    for table, columns in tables.items():
        packed = io.BytesIO()
        parquet.write_table(pyarrow.table(columns), packed)
        _write(folder / f"{table}.parquet", packed.getvalue())


def _write_lotte(home: Path) -> None:
    path = home / "lotte/lotte.tar.gz"
    if path.exists():
        return
    packed: dict[str, str] = {}
    for domain in LOTTE:
        made = corpus(f"lotte/{domain}", DOCUMENTS, QUERIES)
        for split in ("dev", "test"):
            root = f"lotte/{domain}/{split}"
            packed[f"{root}/collection.tsv"] = _tsv(made.documents)
            for kind in ("search", "forum"):
                packed[f"{root}/questions.{kind}.tsv"] = _tsv(made.queries)
                packed[f"{root}/qas.{kind}.jsonl"] = "".join(
                    json.dumps(
                        {
                            "qid": int(query),
                            "query": made.queries[query],
                            "answer_pids": [int(doc) for doc in relevant],
                        }
                    )
                    + "\n"
                    for query, relevant in made.qrels.items()
                )
    _write(path, _tar(packed))


def _write_robust(home: Path) -> None:
    folder = home / "disks45"
    if (folder / "qrels.robust2004.txt").exists():
        return
    made = corpus(
        "robust04",
        DOCUMENTS,
        QUERIES,
        document_ids="FBIS3-{}",
        query_ids="{}",
        first_query=301,
        graded=True,
    )
    documents = iter(made.documents.items())
    for pattern, count in ROBUST_FILES.items():
        for number in range(count):
            # All files must be there; the first ones have a document each.
            key, text = next(documents, ("", ""))
            content = (
                f"<DOC>\n<DOCNO> {key} </DOCNO>\n<HEADLINE>\n{text.split()[0]}\n</HEADLINE>\n"
                f"<TEXT>\n{text}\n</TEXT>\n</DOC>\n"
                if key
                else ""
            )
            _write(folder / "corpus" / pattern.format(number), content.encode())
    topics = "".join(
        f"<top>\n\n<num> Number: {query}\n<title> {text}\n\n<desc> Description:\n{text}\n\n"
        f"<narr> Narrative:\n{text}\n\n</top>\n\n"
        for query, text in made.queries.items()
    )
    _write(folder / "04.testset.gz", _packed(topics))
    _write(folder / "qrels.robust2004.txt", _trec_qrels(made).encode())


FAMILIES: Mapping[str, Callable[..., None]] = {
    r"msmarco-passage(?:/.*)?": _write_msmarco,
    r"beir/(webis-touche2020/v2|[^/]+)(?:/.*)?": _write_beir,
    r"nano-beir/(.+)": _write_nano,
    r"lotte/.*": _write_lotte,
    r"disks45/nocr(?:/trec-robust-2004.*)?": _write_robust,
}


def _judgements(of: Corpus) -> Iterable[tuple[str, str, int]]:
    return (
        (query, doc, grade) for query, grades in of.qrels.items() for doc, grade in grades.items()
    )


def _trec_qrels(of: Corpus, separator: str = " ") -> str:
    return "".join(
        f"{separator.join((query, '0', doc, str(grade)))}\n"
        for query, doc, grade in _judgements(of)
    )


def _tsv(texts: Mapping[str, str]) -> str:
    return "".join(f"{key}\t{text}\n" for key, text in texts.items())


def _packed(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


def _tar(files: Mapping[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return packed.getvalue()


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as draft:
        draft.write_bytes(content)
