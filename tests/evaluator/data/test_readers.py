from pathlib import Path

import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data.readers import read_records, read_texts


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
    with pytest.raises(DataError, match=message):
        list(read_texts(tmp_path / "docs.trec"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected an object"),
        ("[]", "expected an object"),
        ('{"query": "q"}', "no 'passages'"),
        ('{"query": "q", "passages": []}', "no passages"),
        ('{"query": " ", "passages": [{"text": "a"}]}', "the query has no text"),
        ('{"query": "q", "passages": [{"text": ""}]}', "a passage has no text"),
        ('{"query": "q", "passages": [{"text": "a", "label": 0.5}]}', "not a whole number"),
        ('{"query": "q", "passages": [{"text": "a", "teacher_score": NaN}]}', "not a finite"),
    ],
)
def test_a_malformed_training_line_is_a_data_error_with_its_place(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"query": "one", "passages": [{"text": "a"}]}\n' + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        list(read_records(path))
    assert "train.jsonl:2:" in str(caught.value)


def test_the_published_samples_are_read_whole(real_data: Path) -> None:
    folder = real_data / "distillation-samples"
    found = {}
    for path in folder.glob("*.jsonl.gz"):
        records = list(read_records(path))
        pairs = sum(len(record.passages) for record in records)
        assert all(passage.score is not None for r in records for passage in r.passages)
        found[path.name.removesuffix(".jsonl.gz")] = len(records), pairs
    assert found == {
        "msmarco-cross-encoder": (10, 260),
        "msmarco-cross-encoder-llara": (11, 341),
        "nq-cross-encoder": (10, 987),
        "msmarco-llm-likelihood": (8, 808),
    }
