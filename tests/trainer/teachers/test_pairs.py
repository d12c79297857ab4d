import gzip

import numpy as np
import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data.collection import Collection
from xsweep.trainer.teachers.formats import ScoreTriplesSource, TriplesSource
from xsweep.trainer.teachers.pairs import open_pairs

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
