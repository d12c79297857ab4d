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
        *(
            ("x.jsonl", f'{{"_id": {text_id}, "text": "a"}}\n'.encode(), "x.jsonl:1: expected an")
            for text_id in ("null", "true", "1.5", "NaN", '["d"]', '{"a": 1}', '"d\\ud800"')
        ),
        *(
            ("x.jsonl", f'{{"_id": "d", "text": {text}}}\n'.encode(), "x.jsonl:1: expected an")
            for text in ("true", "1", "NaN", '["a", "b"]', '{"a": 1}', '"half \\ud83d"')
        ),
        ("x.jsonl", b'{"_id": "d", "title": 1, "text": "a"}\n', "x.jsonl:1: expected an object"),
        ("x.jsonl", b'{"a": ' * 50_000, "x.jsonl:1: expected an object"),
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
        (
            "<DOC>\n<DOCNO>1</DOCNO>\n<DOC>\n<DOCNO>2</DOCNO>\n</DOC>\n",
            "docs.trec:1: the element is not closed by </doc>",
        ),
        (
            "<DOC><DOCNO>1</DOCNO></DOC>\n<DOC><DOCNO>2</DOCNO><TEXT>a</DOC>\n",
            "docs.trec:2: document 2 has an element that is not closed",
        ),
        ("<top>\n<num> 301\n<desc> words\n</top>\n", "docs.trec:1: the topic 301 has no <title>"),
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
        ('{"query": "half \\ud83d", "passages": [{"text": "a"}]}', "surrogates not allowed"),
        ('{"query": "q", "passages": [{"text": "half \\ud83d"}]}', "surrogates not allowed"),
        (
            '{"query": "q", "passages": [{"text": "a", "label": Infinity}]}',
            "label inf is not a whole",
        ),
        ('{"query": "q", "passages": [{"text": "a", "label": NaN}]}', "label nan is not a whole"),
        ('{"query": "q", "passages": [{"text": "a", "label": true}]}', "label True is not a whole"),
        (
            '{"query": "q", "passages": [{"text": "a", "teacher_score": 1e39}]}',
            "not a finite number",
        ),
        ('{"a": ' * 50_000, "recursion"),
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


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.jsonl", '{"_id": "d", "title": "T", "text": null}\n', [("d", "T")]),
        ("x.jsonl", '{"_id": 7, "title": null, "text": null}\n', [("7", "")]),
        ("x.jsonl", '{"_id": "d\u00a01", "text": "\\ud83d\\ude00"}\n', [("d\u00a01", "😀")]),
        ("x.tsv", "pid\tpassage\nd\ta\n", [("d", "a")]),
        ("x.tsv", "id\ttitle\ttext\nd\tT\ta\n", [("d", "T\ta")]),
        ("x.tsv", "id\tcard\nd\ta\n", [("id", "card"), ("d", "a")]),
        ("x.tsv", "d\u00a01\ta\n", [("d\u00a01", "a")]),
        (
            "x.trec",
            "<DOC><DOCNO>1</DOCNO><TEXT>a</TEXT></DOC> <DOC><DOCNO>2</DOCNO><TEXT>b</TEXT></DOC>\n",
            [("1", "a"), ("2", "b")],
        ),
        ("x.trec", "<DOC>\n<DOCNO>1</DOCNO>\nuntagged text\n</DOC>\n", [("1", "untagged text")]),
        ("x.trec", "<DOC><DOCNO>1</DOCNO><BODY>in a body</BODY></DOC>\n", [("1", "in a body")]),
        (
            "x.trec",
            '<DOC><DOCNO>1</DOCNO><TEXT>a < b and <P class="x">c</P> > d<!-- no -->, x<y'
            "</TEXT></DOC>",
            [("1", "a < b and c > d , x<y")],
        ),
        (
            "x.trec",
            "<top>\n<num> Number: 301\n<title> is a < b\nor not\n\n<desc> Description:\nmore\n"
            "</top>",
            [("301", "is a < b or not")],
        ),
    ],
)
def test_unusual_files_are_read_by_documented_rules(
    tmp_path: Path, name: str, content: str, expected: list
) -> None:
    (tmp_path / name).write_text(content)
    assert list(read_texts(tmp_path / name)) == expected
