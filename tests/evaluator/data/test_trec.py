import gzip
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsweep.errors import DataError
from xsweep.evaluator.data.trec import (
    line_of,
    read_qrels,
    read_run,
    sort_docs,
    write_qrels,
    write_run,
)

RUN = """q1 Q0 d1 1 3.5 tag
q1\tQ0\td2\t2\t4.5\ttag
q2  Q0 d9 1 -1e-3 tag
q1 Q0 d3 3 4.5 tag
"""


def _write(tmp_path: Path, content: bytes | str, name: str = "x.run") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_scores_order_a_run_and_ties_break_by_document_id_descending(tmp_path: Path) -> None:
    run = read_run(_write(tmp_path, RUN))
    assert list(run["q1"].items()) == [("d3", 4.5), ("d2", 4.5), ("d1", 3.5)]
    assert list(run) == ["q1", "q2"]


def test_ranks_order_a_run_when_asked_and_become_scores_that_keep_it(tmp_path: Path) -> None:
    run = read_run(_write(tmp_path, RUN), order="rank")
    assert list(run["q1"].items()) == [("d1", 3.0), ("d2", 2.0), ("d3", 1.0)]
    write_run(tmp_path / "again.run", run, tag="x")
    assert read_run(tmp_path / "again.run") == run


def test_scores_that_differ_only_beyond_float32_tie_as_in_trec_eval(tmp_path: Path) -> None:
    content = "q Q0 a 1 1.00000000001 t\nq Q0 b 2 1.0 t\n"
    run = read_run(_write(tmp_path, content))
    assert list(run["q"]) == ["b", "a"]
    (value,) = ir_measures.iter_calc(
        [ir_measures.RR], {"q": {"a": 1}}, {"q": {"a": 1.00000000001, "b": 1.0}}
    )
    assert value.value == 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q Q0 d 1 1.0\n", r":1: expected 6 columns .*, found 5"),
        ("q Q0 d one 1 1.0 tag\n", r":1: expected 6 columns .*, found 7"),
        ("q Q0 d 1 1.0 t\nq Q0 e 2 nan t\n", r":2: the score 'nan' is not a finite number"),
        ("q Q0 d 1 inf t\n", r":1: the score 'inf'"),
        ("q Q0 d 1 1e39 t\n", r":1: the score '1e39'"),
        ("q Q0 d 1 1_0 t\n", r":1: the score '1_0'"),
        ("q Q0 d 1 high t\n", r":1: the score 'high'"),
        ("q Q0 d 1 1 t\nq Q0 d 2 1 t\n", r":2: document 'd' occurs twice for query 'q'"),
        (b"q Q0 d\xff 1 1 t\n", r":1: .*is not UTF-8"),
        (b"q Q0 d 1 \xff t\n", r":1: .*is not UTF-8"),
        ("", "the file is empty"),
        ("\n \n", "holds no results"),
    ],
)
def test_malformed_runs_are_named_with_their_line(
    tmp_path: Path, content: bytes | str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_run(_write(tmp_path, content))
    assert str(tmp_path / "x.run") in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q Q0 d x 1 t\n", r":1: the rank 'x' is not a whole number"),
        ("q Q0 d 1.5 1 t\n", r":1: the rank '1.5' is not a whole number"),
        ("q Q0 d 1 1 t\nq Q0 e 1 2 t\n", r":2: rank 1 occurs twice for query 'q'"),
    ],
)
def test_ranks_must_be_an_order_where_they_are_used(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_run(_write(tmp_path, content), order="rank")


def test_ranks_are_not_looked_at_where_scores_order(tmp_path: Path) -> None:
    assert read_run(_write(tmp_path, "q Q0 d x 1 t\nq Q0 e x 2 t\n")) == {"q": {"e": 2.0, "d": 1.0}}


def test_a_gzip_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    lines = "".join(f"q Q0 d{number} {number} {number}.25 t\n" for number in range(5000))
    packed = gzip.compress(lines.encode())
    assert len(read_run(_write(tmp_path, packed, "whole.run.gz"))["q"]) == 5000
    with pytest.raises(DataError, match=r"cut\.run\.gz:\d+: damaged gzip"):
        read_run(_write(tmp_path, packed[: len(packed) // 2], "cut.run.gz"))
    with pytest.raises(DataError, match=r"not\.run\.gz:1: damaged gzip"):
        read_run(_write(tmp_path, RUN, "not.run.gz"))


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_run(tmp_path / "none.run")
    with pytest.raises(DataError, match="directory"):
        read_run(tmp_path)


@given(
    st.dictionaries(
        st.text("abcABC019-_é", min_size=1, max_size=4),
        st.dictionaries(
            st.text("xyz01é", min_size=1, max_size=3),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            min_size=1,
        ),
        min_size=1,
    )
)
def test_float32_scores_and_their_order_survive_writing(tmp_path_factory, run: dict) -> None:
    path = tmp_path_factory.mktemp("run") / "x.run.gz"
    write_run(path, run, tag="t")
    again = read_run(path)
    assert {query: dict(docs) for query, docs in again.items()} == run
    assert all(list(again[query].items()) == sort_docs(docs) for query, docs in run.items())


def test_the_same_run_makes_the_same_bytes(tmp_path: Path) -> None:
    run = {"q": {"d": float(np.float32(0.1)), "e": 2.0}}
    write_run(tmp_path / "a.run.gz", run, tag="t")
    write_run(tmp_path / "b.run.gz", run, tag="t")
    assert (tmp_path / "a.run.gz").read_bytes() == (tmp_path / "b.run.gz").read_bytes()
    assert read_run(tmp_path / "a.run.gz") == run


def test_qrels_are_read_in_both_formats(tmp_path: Path) -> None:
    expected = {"q1": {"d1": 2, "d2": -1}, "q2": {"d1": 0}}
    trec = _write(tmp_path, "q1 0 d1 2\nq1 0 d2 -1\nq2\t0\td1\t0\n", "a")
    beir = _write(tmp_path, "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t-1\nq2\td1\t0\n", "b")
    assert read_qrels(trec) == read_qrels(beir) == expected
    write_qrels(tmp_path / "c", expected)
    assert read_qrels(tmp_path / "c") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q 0 d relevant\n", ":1: the grade 'relevant' is not a whole number"),
        ("q 0 d 1.5\n", ":1: the grade '1.5'"),
        ("q 0 d --1\n", ":1: the grade '--1'"),
        ("q 0 d 99999999999999999999\n", ":1: the grade '9+'"),
        ("q 0 d 2147483648\n", ":1: the grade '2147483648'"),
        ("q 0 d 1e20\n", ":1: the grade '1e20'"),
        ("q 0 d Infinity\n", ":1: the grade 'Infinity'"),
        ("q 0 d ١\n", ":1: the grade"),
        ("corpus-id\tquery-id\tscore\nd\tq\t1\n", ":1: the grade 'score'"),
        ("q 0 d 1\nq 0 e\n", ":2: expected 4 columns"),
        ("q d\n", ":1: expected 4 columns"),
        ("q 0 d 1\nq 0 d 2\n", ":2: document 'd' has two grades for query 'q': 1 and 2"),
        (b"q 0 \xe9 1\n", ":1: .*not UTF-8"),
        ("", "empty"),
        ("query-id\tcorpus-id\tscore\n", "no judgements"),
    ],
)
def test_malformed_qrels_are_named_with_their_line(
    tmp_path: Path, content: bytes | str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_qrels(_write(tmp_path, content))


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path: Path) -> None:
    assert list(read_run(_write(tmp_path, b"\xef\xbb\xbfq1 Q0 d1 1 2.0 t\n"))) == ["q1"]
    assert list(read_qrels(_write(tmp_path, b"\xef\xbb\xbfq1 0 d1 1\r\n", "qrels"))) == ["q1"]


def test_the_line_of_a_document_is_its_first(tmp_path: Path) -> None:
    path = _write(tmp_path, RUN)
    assert (line_of(path, "d3"), line_of(path, "d1"), line_of(path, "none")) == (4, 1, 0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("# a comment\nq 0 d 1\n", {"q": {"d": 1}}),
        ("q 0 d 1.0\nq 0 e -1.0\n", {"q": {"d": 1, "e": -1}}),
        ("qid docid rel\nq d 1\n", {"q": {"d": 1}}),
        ("query_id\titeration\tdoc_id\trelevance\nq\t0\td\t2\n", {"q": {"d": 2}}),
        ("query doc 1\nq d 1\n", {"query": {"doc": 1}, "q": {"d": 1}}),
        ("q\tmy doc\t1\n", {"q": {"my doc": 1}}),
        ("q\td\u00a01\t1\n", {"q": {"d\u00a01": 1}}),
        ("q 0 d\u00a01 1\n", {"q": {"d\u00a01": 1}}),
        ("q 0 d 2147483647\n", {"q": {"d": 2**31 - 1}}),
    ],
)
def test_qrels_of_other_layouts_are_read(tmp_path: Path, content: str, expected: dict) -> None:
    assert read_qrels(_write(tmp_path, content)) == expected


def test_comments_and_words_after_the_tag_of_a_run_are_skipped(tmp_path: Path) -> None:
    content = "# made by hand\nq Q0 d 1 2.5 tag\nq Q0 e 2 1.5 tag of several words\n"
    assert read_run(_write(tmp_path, content)) == {"q": {"d": 2.5, "e": 1.5}}


def test_a_run_keeps_no_break_spaces_in_ids(tmp_path: Path) -> None:
    assert read_run(_write(tmp_path, "q Q0 d\u00a01 1 2.5 tag\n")) == {"q": {"d\u00a01": 2.5}}


def test_ranks_above_the_integers_of_a_float32_keep_their_order(tmp_path: Path) -> None:
    content = f"q Q0 d {2**24 + 1} 0 tag\nq Q0 e {2**24} 0 tag\nq Q0 f {2**24 + 2} 0 tag\n"
    assert list(read_run(_write(tmp_path, content), "rank")["q"]) == ["e", "d", "f"]


@pytest.mark.parametrize("ending", [".bz2", ".xz", ".zst"])
def test_a_file_packed_otherwise_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"qrels.txt{ending}"
    path.write_bytes(b"BZh9")
    with pytest.raises(DataError, match=r"only \.gz is read packed"):
        read_qrels(path)


def test_a_tab_separated_run_keeps_blanks_inside_its_columns_and_none_around_them(
    tmp_path: Path,
) -> None:
    content = "q\tQ0\tmy doc\t1\t2.5\ta tag\nq \tQ0\td \t2\t 1.5\tt\n"
    assert read_run(_write(tmp_path, content)) == {"q": {"my doc": 2.5, "d": 1.5}}


def test_qrels_with_blanks_in_ids_survive_writing(tmp_path: Path) -> None:
    qrels = {"q": {"my doc": 1, "d\u00a01": 2, "d": 0}}
    write_qrels(tmp_path / "qrels.txt", qrels)
    assert read_qrels(tmp_path / "qrels.txt") == qrels
    assert (tmp_path / "qrels.txt").read_text().splitlines()[2] == "q 0 d 0"
