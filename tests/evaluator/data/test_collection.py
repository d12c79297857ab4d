import gzip
import json
from pathlib import Path

import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.collection import folder_files, folder_sha256
from xsweep.evaluator.data.files import checksum
from xsweep.evaluator.specs import COLLECTION, JsonlSpec

LINES = [
    {"query": "one", "passages": [{"text": "a", "label": 1, "teacher_score": 2.5}, {"text": "b"}]},
    {"query": "two", "qid": "7", "passages": [{"text": "b", "label": 0, "teacher_score": -1}]},
]
DOCUMENTS = [
    {"_id": "d1", "title": "Foxes", "text": "quick and brown"},
    {"_id": "d2", "title": "", "text": "lazy dogs"},
    {"_id": "d3", "text": ""},
]


@pytest.fixture
def beir_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    lines = "".join(json.dumps(document) + "\n" for document in DOCUMENTS)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "what is brown?"}\n')
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    return folder


def test_a_beir_folder_gives_title_and_text_packed_or_not(beir_folder: Path) -> None:
    spec = COLLECTION.validate_python({"source": "folder", "name": "x", "path": str(beir_folder)})
    collection = load_collection(spec)
    expected = {"d1": "Foxes quick and brown", "d2": "lazy dogs", "d3": ""}
    assert dict(collection.documents()) == expected
    assert dict(collection.documents()) == expected, "a second pass starts again"
    assert collection.queries == {"q1": "what is brown?"}
    assert collection.qrels == {"q1": {"d1": 1}}


def test_a_folder_that_differs_from_its_checksum_is_refused(beir_folder: Path) -> None:
    spec = {"source": "folder", "name": "x", "path": str(beir_folder)}
    declared = COLLECTION.validate_python(spec | {"sha256": folder_sha256(beir_folder, "test")})
    load_collection(declared)
    (beir_folder / "queries.jsonl").write_text('{"_id": "q1", "text": "changed"}\n')
    with pytest.raises(DataError, match="declared is"):
        load_collection(declared)


def _files(folder: Path, **checksums: str) -> dict:
    (folder / "docs.tsv").write_text("d1\tquick and brown\nd2\tlazy\tdogs\n")
    (folder / "queries.tsv").write_text("q1\twhat is brown?\n")
    (folder / "qrels.txt").write_text("q1 0 d1 2\n")
    return {
        "source": "files",
        "name": "mine",
        "documents": {"path": str(folder / "docs.tsv"), **checksums},
        "queries": {"path": str(folder / "queries.tsv")},
        "qrels": {"path": str(folder / "qrels.txt")},
    }


def test_texts_are_found_by_id_in_the_order_asked(tmp_path: Path) -> None:
    collection = load_collection(COLLECTION.validate_python(_files(tmp_path)))
    texts = collection.document_texts(["d2", "d1", "d2"])
    assert list(texts.items()) == [("d2", "lazy\tdogs"), ("d1", "quick and brown")]


def test_an_unknown_document_is_a_data_error_unless_skipped(tmp_path: Path) -> None:
    collection = load_collection(COLLECTION.validate_python(_files(tmp_path)))
    with pytest.raises(DataError, match=r"'mine' has no document 'd9' \(1 of 2 ids"):
        collection.document_texts(["d1", "d9"])
    assert collection.document_texts(["d9", "d1"], skip_unknown=True).keys() == {"d1"}


def test_declared_checksums_are_held(tmp_path: Path) -> None:
    spec = _files(tmp_path)
    md5 = checksum(tmp_path / "docs.tsv", "md5")
    load_collection(COLLECTION.validate_python(_files(tmp_path, md5=md5)))
    with pytest.raises(DataError, match=rf"docs.tsv: md5 is {md5}, declared is 0000"):
        load_collection(COLLECTION.validate_python(_files(tmp_path, md5="0000")))
    with pytest.raises(DataError, match="sha256 is"):
        load_collection(COLLECTION.validate_python(_files(tmp_path, sha256="0000")))
    assert spec["source"] == "files"


def _collection(folder: Path, split: str):
    return load_collection(
        COLLECTION.validate_python(
            {"source": "folder", "name": "x", "path": str(folder), "split": split}
        )
    )


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("")


def test_a_trec_folder_with_tables_gives_the_split_that_is_asked(tmp_path: Path) -> None:
    (tmp_path / "passages.tsv.gz").write_bytes(gzip.compress(b"d1\tquick and brown\nd2\tlazy\n"))
    for split, query in (("dl19", "what is brown?"), ("dl20", "who is lazy?")):
        (tmp_path / f"queries.{split}.tsv").write_text(f"{split}q\t{query}\n")
        (tmp_path / f"qrels.{split}.txt").write_text(f"{split}q 0 d2 3\n")
    found = _collection(tmp_path, "dl20")
    assert dict(found.documents()) == {"d1": "quick and brown", "d2": "lazy"}
    assert found.queries == {"dl20q": "who is lazy?"}
    assert found.qrels == {"dl20q": {"d2": 3}}
    assert folder_sha256(tmp_path, "dl19") != folder_sha256(tmp_path, "dl20")


def test_a_trec_folder_may_hold_trecs_own_markup(tmp_path: Path) -> None:
    (tmp_path / "docs.trec").write_text(
        "<DOC>\n<DOCNO> FT-1 </DOCNO>\n<HEADLINE>\nFoxes &amp; dogs\n</HEADLINE>\n<BYLINE>by me\n"
        "</BYLINE>\n<TEXT>\n<P>quick\n and brown</P>\n</TEXT>\n</DOC>\n\n"
        "<DOC><DOCNO>FT-2</DOCNO></DOC>\n"
    )
    (tmp_path / "topics.trec").write_text(
        "<top>\n<num> Number: 301\n<title> International\nCrime\n"
        "<desc> Description:\nIdentify.\n</top>\n"
    )
    (tmp_path / "qrels.trec").write_text("301 0 FT-1 1\n")
    found = _collection(tmp_path, "test")
    assert dict(found.documents()) == {"FT-1": "Foxes & dogs quick and brown", "FT-2": ""}
    assert found.queries == {"301": "International Crime"}
    assert found.qrels == {"301": {"FT-1": 1}}


def test_a_corpus_jsonl_makes_it_beirs_layout(tmp_path: Path) -> None:
    _touch(tmp_path, "corpus.jsonl", "queries.tsv", "qrels.txt")
    assert folder_files(tmp_path, "dev") == (
        tmp_path / "corpus.jsonl",
        tmp_path / "queries.jsonl",
        tmp_path / "qrels/dev.tsv",
    )


def test_a_file_of_the_split_goes_before_one_for_all(tmp_path: Path) -> None:
    _touch(tmp_path, "docs.tsv", "queries.tsv", "queries.dev.tsv", "qrels.txt")
    assert folder_files(tmp_path, "dev").queries == tmp_path / "queries.dev.tsv"
    assert folder_files(tmp_path, "test").queries == tmp_path / "queries.tsv"


def test_a_folder_that_could_mean_two_files_or_lacks_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        folder_files(tmp_path / "none", "test")
    _touch(tmp_path, "docs.tsv", "queries.tsv")
    with pytest.raises(DataError, match="no file with the qrels"):
        folder_files(tmp_path, "test")
    _touch(tmp_path, "qrels.txt", "passages.tsv")
    with pytest.raises(DataError, match=r"documents could be passages.tsv or docs.tsv"):
        folder_files(tmp_path, "test")


def test_passages_queries_and_labels_make_a_collection_in_which_equal_texts_are_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    file = {"path": str(path)}
    collection = load_collection(JsonlSpec(name="x", file=file))
    texts = dict(collection.documents())
    assert sorted(texts.values()) == ["a", "b"]
    assert collection.queries == {"1": "one", "2": "two"}
    relevant = {query: list(docs) for query, docs in collection.qrels.items()}
    assert [texts[doc] for doc in relevant["1"]] == ["a"]
    assert relevant["2"] == []
