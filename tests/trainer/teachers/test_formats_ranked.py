import numpy as np
import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data.trec import read_run
from xsweep.trainer.specs import TeacherSpec
from xsweep.trainer.teachers.lists import ListTeacher, read_lists


def spec(path, order="score", **settings):
    source = {"type": "run", "file": {"path": str(path)}, "order": order}
    settings = settings or {"signal": "ranking", "list_size": 4}
    return TeacherSpec.model_validate({"source": source, **settings})


def write(path, shuffled: bool):
    """Twenty lists of up to 30 documents with many ties, each query's lines together or not."""
    random = np.random.default_rng(5)
    lines = []
    for query in range(20):
        ids = random.permutation(60)[: random.integers(3, 31)]
        for rank, doc in enumerate(ids, 1):
            lines.append(f"q{query} 0 d{doc} {rank} {random.integers(0, 4)} t\n")
    if shuffled:
        lines = [lines[place] for place in random.permutation(len(lines))]
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("order", ["score", "rank"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_lists_on_disk_are_those_of_a_run_in_memory(tmp_path, order, shuffled):
    path = write(tmp_path / "a.run", shuffled)
    lists, plain = read_lists(spec(path, order), {}), read_run(path, order)
    assert lists == plain
    for query, docs in plain.items():
        assert list(lists[query].items()) == list(docs.items()), "in the same order, too"


@pytest.mark.parametrize(
    "settings",
    [
        {"signal": "labels", "negatives": 3},
        {"signal": "scores", "list_size": 4},
        {"signal": "ranking", "depth": 5},
    ],
)
def test_samples_from_disk_are_those_of_lists_in_memory(tmp_path, settings):
    path = write(tmp_path / "a.run", shuffled=True)
    how = spec(path, **settings)
    queries = {f"q{query}": "text" for query in range(20)}
    qrels = {f"q{query}": {f"d{doc}": 1 for doc in range(0, 60, 7)} for query in range(20)}
    documents = {f"d{doc}" for doc in range(60)}
    on_disk = ListTeacher(how, read_lists(how, {}), queries, qrels, documents)
    plain = ListTeacher(how, read_run(path), queries, qrels, documents)
    assert on_disk.counts == plain.counts
    assert on_disk.queries == plain.queries
    for unit in range(len(plain)):
        one, other = (each.draw(unit, np.random.default_rng(unit)) for each in (on_disk, plain))
        assert one[:2] == other[:2]
        assert one.targets_D.tolist() == other.targets_D.tolist()
        assert one.labels_D.tolist() == other.labels_D.tolist()


@pytest.mark.parametrize(
    ("order", "lines", "message"),
    [
        ("score", "q 0 a 1 2 t\nq 0 a 2 1 t\n", r"a\.run:2: document 'a' occurs twice for query"),
        (
            "score",
            "q 0 a 1 2 t\np 0 a 1 2 t\nq 0 a 2 1 t\n",
            r"a\.run:3: document 'a' occurs twice for query 'q'",
        ),
        ("rank", "q 0 a 1 2 t\np 0 a 1 2 t\nq 0 b 1 1 t\n", r"a\.run:3: rank 1 occurs twice"),
    ],
)
def test_what_occurs_twice_is_refused_with_its_line_wherever_it_stands(
    tmp_path, order, lines, message
):
    (tmp_path / "a.run").write_text(lines)
    with pytest.raises(DataError, match=message):
        read_lists(spec(tmp_path / "a.run", order), {})
    with pytest.raises(DataError, match=message):
        read_run(tmp_path / "a.run", order)
