import gzip
from pathlib import Path

import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.collection import folder_files, folder_sha256
from xsweep.evaluator.specs import COLLECTION


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


@pytest.mark.parametrize(
    ("markup", "message"),
    [
        ("<DOC>\n<TEXT>a</TEXT>\n</DOC>\n", r"docs.trec:1: the element has no <DOCNO>"),
        ("\n<DOC>\n<DOCNO>1</DOCNO>\n", r"docs.trec:2: the element is not closed by </doc>"),
        ("<DOC><DOCNO>1</DOCNO></DOC>\nstray\n", r"docs.trec:2: expected <DOC> or <top>, found"),
        ("<DOC><DOCNO>1</DOCNO></DOC>\n" * 2, r"docs.trec:2: the id '1' occurs twice"),
        ("<DOC><DOCNO>1 2</DOCNO></DOC>\n", r"docs.trec:1: the id '1 2' is empty or has blanks"),
    ],
)
def test_damaged_markup_is_named_with_its_line(tmp_path: Path, markup: str, message: str) -> None:
    (tmp_path / "docs.trec").write_text(markup)
    (tmp_path / "queries.tsv").write_text("q\ttext\n")
    (tmp_path / "qrels.txt").write_text("q 0 1 1\n")
    with pytest.raises(DataError, match=message):
        list(_collection(tmp_path, "test").documents())


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
