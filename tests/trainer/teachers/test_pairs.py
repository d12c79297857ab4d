import gzip

import numpy as np
import pytest

from evaluator.collections import Collection
from trainer.specs import ScoreTriplesSource, TriplesSource
from trainer.teachers import pairs
from trainer.teachers.pairs import open_pairs
from xsweep import DataError

COLLECTION = Collection("c", lambda: iter(()), {"q1": "one", "q2": "two"}, {})
RANDOM = np.random.default_rng(0)


def triples(path):
    return open_pairs(TriplesSource(file={"path": str(path)}), COLLECTION)


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
    sample = open_pairs(ScoreTriplesSource(file={"path": str(path)}), COLLECTION).draw(0, RANDOM)
    assert sample[:2] == ("q1", ("a", "b"))
    assert sample.targets_D.tolist() == [9.5, -2.25]


def test_line_starts_do_not_depend_on_the_reading_chunks(tmp_path, monkeypatch):
    path = tmp_path / "triples.tsv"
    path.write_text("".join(f"q1\td{n}\te{n}\n" for n in range(50)))
    whole = triples(path).starts
    monkeypatch.setattr(pairs, "CHUNK_BYTES", 7)
    assert triples(path).starts.tolist() == whole.tolist()


@pytest.mark.parametrize("line", ["q1\ta", "q1\ta\tb\tc", "q9\ta\tb"])
def test_a_malformed_line_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "triples.tsv"
    path.write_text(f"q1\ta\tb\n{line}\n")
    with pytest.raises(DataError, match=r"triples\.tsv:2"):
        triples(path).draw(1, RANDOM)


@pytest.mark.parametrize("scores", ["x\t1", "nan\t1", "inf\t1"])
def test_a_score_that_is_no_finite_number_is_refused(tmp_path, scores):
    path = tmp_path / "scores.tsv"
    path.write_text(f"{scores}\tq1\ta\tb\n")
    with pytest.raises(DataError, match=r"scores\.tsv:1"):
        open_pairs(ScoreTriplesSource(file={"path": str(path)}), COLLECTION).draw(0, RANDOM)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "triples.tsv"
    path.touch()
    with pytest.raises(DataError, match="no pairs"):
        triples(path)
