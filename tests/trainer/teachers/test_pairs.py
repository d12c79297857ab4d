import gzip
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsweep.errors import DataError
from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.collection import Collection
from xsweep.evaluator.specs import IrdsSpec
from xsweep.orchestrator.rehearsal import datasets
from xsweep.trainer.teachers import formats, pairs
from xsweep.trainer.teachers.formats import DocpairsSource, ScoreTriplesSource, TriplesSource
from xsweep.trainer.teachers.pairs import STRIDE, keep_lines, open_lines, open_pairs

DOCUMENTS = {name + str(n) for name in "de" for n in range(50)} | set("abcd")
COLLECTION = Collection("c", lambda: iter(()), {"q1": "one", "q2": "two"}, {})
RANDOM = np.random.default_rng(0)


def triples(path):
    return open_pairs(TriplesSource(file={"path": str(path)}), COLLECTION, DOCUMENTS)


def score_triples(path):
    return open_pairs(ScoreTriplesSource(file={"path": str(path)}), COLLECTION, DOCUMENTS)


@pytest.mark.parametrize("ending", ["", "\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_line_of_a_triples_file_is_one_sample(tmp_path, ending, packed):
    content = f"q1\ta\tb\nq2\tc\td{ending}".encode()
    path = tmp_path / ("triples.tsv.gz" if packed else "triples.tsv")
    path.write_bytes(gzip.compress(content) if packed else content)
    teacher = triples(path)
    assert len(teacher) == 2
    assert teacher.draw(1, RANDOM)[:2] == ("q2", ("c", "d"))
    assert teacher.draw(0, RANDOM).targets_D.tolist() == [1, 0]


def test_score_triples_carry_the_teachers_scores(tmp_path):
    path = tmp_path / "scores.tsv"
    path.write_text("9.5\t-2.25\tq1\ta\tb\n")
    sample = score_triples(path).draw(0, RANDOM)
    assert sample[:2] == ("q1", ("a", "b"))
    assert sample.targets_D.tolist() == [9.5, -2.25]
    assert sample.labels_D.tolist() == [1, 0]


@pytest.mark.parametrize(
    "line", ["q1\ta", "q1\ta\tb\tc", "q9\ta\tb", "q1\ta\tz9", "q1\tz9\tb", "", "q1\ta\tb\xff"]
)
def test_a_malformed_line_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "triples.tsv"
    path.write_bytes(f"q1\ta\tb\n{line}\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"triples\.tsv:2"):
        triples(path).draw(1, RANDOM)


@pytest.mark.parametrize("scores", ["x\t1", "nan\t1", "inf\t1", "1\t1e39"])
def test_a_score_that_is_no_finite_number_is_refused(tmp_path, scores):
    path = tmp_path / "scores.tsv"
    path.write_text(f"{scores}\tq1\ta\tb\n")
    with pytest.raises(DataError, match=r"scores\.tsv:1"):
        score_triples(path).draw(0, RANDOM)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "triples.tsv"
    path.touch()
    with pytest.raises(DataError, match="no pairs"):
        triples(path)


def test_a_cut_off_file_is_refused(tmp_path):
    path = tmp_path / "triples.tsv.gz"
    path.write_bytes(gzip.compress(RANDOM.bytes(1000))[:-20])
    with pytest.raises(DataError, match="damaged gzip file"):
        triples(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.tsv: cannot be read"):
        triples(tmp_path / "none.tsv")


@pytest.mark.parametrize("dataset", ["msmarco-passage/train", "msmarco-passage/train/triples-v2"])
def test_triples_of_ir_datasets_are_read_from_their_file(tmp_path, monkeypatch, dataset):
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path / "home"))
    datasets.write_datasets(tmp_path / "irds", [dataset])
    spec = IrdsSpec(name="train", id=dataset, home=str(tmp_path / "irds"))
    collection = load_collection(spec)
    monkeypatch.setattr(formats, "_docpair_lines", None)  # fails if read line by line
    corpus = datasets.training_corpus()
    teacher = open_pairs(DocpairsSource(id=dataset), collection, corpus.documents)
    expected = datasets.triples(corpus).splitlines()
    assert len(teacher) == len(expected) > 300
    for unit in (0, 17, len(expected) - 1):
        query, positive, negative = expected[unit].split("\t")
        sample = teacher.draw(unit)
        assert (sample.query_id, sample.doc_ids) == (query, (positive, negative))


@given(
    st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"")), max_size=70),
    st.booleans(),
    st.integers(1, 40),
)
def test_lines_equal_those_of_pythons_reader(tmp_path_factory, texts, closed, chunk_bytes):
    content = b"\n".join(texts) + (b"\n" if closed and texts else b"")
    path = tmp_path_factory.mktemp("lines") / "file"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "CHUNK_BYTES", chunk_bytes)
        found = open_lines(path)
    expected = [line.rstrip(b"\n") for line in io.BytesIO(content)]
    assert [found[number] for number in range(len(found))] == expected


def test_memory_holds_one_start_in_sixteen():
    found = keep_lines(b"q\ta\tb\n" for _ in range(10 * STRIDE))
    assert len(found) == 160
    assert len(found._starts) == 10 + 1
