import gzip
import json
from pathlib import Path

import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.collection import folder_sha256
from xsweep.evaluator.data.files import checksum
from xsweep.evaluator.data.readers import read_texts
from xsweep.evaluator.specs import COLLECTION

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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tsv", b"d1\tfine\nno tab here\n", r"x.tsv:2: expected id<TAB>text"),
        ("x.tsv", b"d1\ta\nd1\tb\n", r"x.tsv:2: the id 'd1' occurs twice"),
        ("x.tsv", b"d1\ta\nd2\t\xff\n", r"x.tsv:2: .*not UTF-8"),
        ("x.jsonl", b'{"_id": "d1", "text": "a"}\n{"_id": "d2"}\n', r"x.jsonl:2: expected"),
        ("x.jsonl", b'{"text": "a"}\n', r"x.jsonl:1: expected an object"),
        ("x.jsonl", b'["d1", "a"]\n', r"x.jsonl:1: expected an object"),
        ("x.jsonl", b"{broken\n", r"x.jsonl:1: expected an object"),
        (
            "x.jsonl",
            b'{"_id": "d 1", "text": "a"}\n',
            r"x.jsonl:1: the id 'd 1' is empty or has bl",
        ),
        ("x.jsonl", b'{"_id": "", "text": "a"}\n', r"x.jsonl:1: the id '' is empty"),
        ("x.tsv", b"", "empty"),
        ("x.parquet", b"PAR1", "are read from"),
    ],
)
def test_malformed_texts_are_named_with_their_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_texts(tmp_path / name))
