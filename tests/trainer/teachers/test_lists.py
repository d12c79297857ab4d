import numpy as np
import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data.trec import read_run
from xsweep.trainer.specs import TeacherSpec
from xsweep.trainer.teachers.lists import ListTeacher, read_lists

LISTS = {
    "q1": {"a": 9.0, "b": 7.0, "c": 5.0, "d": 3.0, "e": 1.0},
    "q2": {"a": 2.0, "b": 1.0},
    "q3": {"x": 1.0, "y": 0.5},
}
QUERIES = {"q1": "one", "q2": "two"}
QRELS = {"q1": {"b": 2, "d": 1, "z": 1, "a": 0}, "q2": {"y": 1}}
DOCUMENTS = set("abcdexyz")


def teacher(signal="labels", source="candidates", **settings):
    spec = TeacherSpec.model_validate({"signal": signal, "source": {"type": source}, **settings})
    return ListTeacher(spec, LISTS, QUERIES, QRELS, DOCUMENTS)


def draws(given, unit=0, count=200):
    return [given.draw(unit, np.random.default_rng(seed)) for seed in range(count)]


def test_labels_draw_a_positive_first_and_then_distinct_negatives():
    seen = draws(teacher(negatives=2))
    assert {sample.doc_ids[0] for sample in seen} == {"b", "d"}
    assert {doc for sample in seen for doc in sample.doc_ids[1:]} == {"a", "c", "e"}
    for sample in seen:
        assert len(set(sample.doc_ids)) == 3
        assert sample.targets_D.tolist() == [1, 0, 0]


def test_negatives_are_uniform():
    counts = dict.fromkeys("ace", 0)
    for sample in draws(teacher(negatives=1), count=900):
        counts[sample.doc_ids[1]] += 1
    assert all(240 <= count <= 360 for count in counts.values())


def test_queries_without_a_positive_or_without_text_are_skipped_and_counted():
    given = teacher(negatives=2)
    assert given.counts == {"used": 1, "no_text": 1, "no_positive": 1, "too_short": 0, "tied": 0}
    assert list(given.queries) == ["q1"]


def test_add_positives_adds_relevant_documents_that_the_list_misses():
    given = teacher(negatives=2, add_positives=True)
    assert given.counts["used"] == 2
    assert {sample.doc_ids[0] for sample in draws(given)} == {"b", "d", "z"}
    assert {sample.doc_ids[0] for sample in draws(given, unit=1)} == {"y"}


def test_only_documents_that_the_teacher_scored_are_added_to_scores():
    given = teacher("scores", "teach", negatives=1, add_positives=True)
    assert given.counts["used"] == 1
    assert {sample.doc_ids[0] for sample in draws(given)} == {"b", "d"}


def test_documents_of_the_relevant_grade_are_positive():
    given = teacher(negatives=1, relevant_grade=2)
    assert {sample.doc_ids[0] for sample in draws(given)} == {"b"}
    assert "d" in {sample.doc_ids[1] for sample in draws(given)}


def test_depth_cuts_the_list_before_drawing():
    given = teacher(negatives=5, depth=3)
    assert {doc for sample in draws(given) for doc in sample.doc_ids} == {"a", "b", "c"}


def test_a_list_with_too_few_negatives_gives_all_of_them():
    assert len(draws(teacher(negatives=7))[0].doc_ids) == 4


def test_scores_follow_their_documents():
    for sample in draws(teacher("scores", "teach", list_size=3)):
        assert len(set(sample.doc_ids)) == 3
        assert sample.targets_D.tolist() == [LISTS["q1"][doc] for doc in sample.doc_ids]


def test_a_ranking_is_the_negated_rank_in_the_whole_list():
    sample = teacher("ranking", "teach").draw(0, np.random.default_rng(0))
    assert sample.doc_ids == ("a", "b", "c", "d", "e")
    assert sample.targets_D.tolist() == [-1, -2, -3, -4, -5]


def test_an_error_names_an_unknown_document():
    spec = TeacherSpec.model_validate(
        {"signal": "labels", "source": {"type": "candidates"}, "negatives": 1}
    )
    with pytest.raises(DataError, match="'e' \\(query 'q1'\\)"):
        ListTeacher(spec, LISTS, QUERIES, QRELS, DOCUMENTS - {"e"})


def test_a_teacher_without_a_query_reports_the_reasons():
    spec = TeacherSpec.model_validate(
        {"signal": "labels", "source": {"type": "candidates"}, "negatives": 1}
    )
    with pytest.raises(DataError, match="'no_positive': 2"):
        ListTeacher(spec, LISTS, QUERIES, {}, DOCUMENTS)


def run_spec(path, order="score", **settings):
    source = {"type": "run", "file": {"path": str(path)}, "order": order}
    settings = settings or {"signal": "ranking", "list_size": 4}
    return TeacherSpec.model_validate({"source": source, **settings})


def write_run(path, shuffled):
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
def test_lists_on_disk_equal_those_of_a_run_in_memory(tmp_path, order, shuffled):
    path = write_run(tmp_path / "a.run", shuffled)
    lists, plain = read_lists(run_spec(path, order), {}), read_run(path, order)
    assert lists == plain
    for query, docs in plain.items():
        assert list(lists[query].items()) == list(docs.items()), "in the same order"


@pytest.mark.parametrize(
    "settings",
    [
        {"signal": "labels", "negatives": 3},
        {"signal": "scores", "list_size": 4},
        {"signal": "ranking", "depth": 5},
    ],
)
def test_samples_from_disk_equal_those_of_lists_in_memory(tmp_path, settings):
    path = write_run(tmp_path / "a.run", shuffled=True)
    spec = run_spec(path, **settings)
    queries = {f"q{query}": "text" for query in range(20)}
    qrels = {f"q{query}": {f"d{doc}": 1 for doc in range(0, 60, 7)} for query in range(20)}
    documents = {f"d{doc}" for doc in range(60)}
    on_disk = ListTeacher(spec, read_lists(spec, {}), queries, qrels, documents)
    plain = ListTeacher(spec, read_run(path), queries, qrels, documents)
    assert on_disk.counts == plain.counts
    assert on_disk.queries == plain.queries
    for unit in range(len(plain)):
        one, other = (each.draw(unit, np.random.default_rng(unit)) for each in (on_disk, plain))
        assert one[:2] == other[:2]
        assert one.targets_D.tolist() == other.targets_D.tolist()
        assert one.labels_D.tolist() == other.labels_D.tolist()


def plain_draw(spec, scores, grades, random):
    """A sample from a dictionary of a query's documents, as the settings' documentation says."""
    relevant = {doc for doc, grade in grades.items() if grade >= 1}
    docs = list(scores)[: spec.depth]
    if spec.add_positives:
        known = relevant if spec.signal == "labels" else relevant & scores.keys()
        docs += sorted(known - set(docs))
    labels = {doc: float(doc in relevant) for doc in docs}
    targets = {
        "labels": labels,
        "scores": scores,
        "ranking": {doc: -place for place, doc in enumerate(scores, 1)},
    }[spec.signal]
    if spec.negatives:
        positives, others = (
            np.array([n for n, doc in enumerate(docs) if labels[doc] == value]) for value in (1, 0)
        )
        first = random.choice(positives, 1)
        k = min(spec.negatives, len(others))
        chosen = [*first, *random.choice(others, k, replace=False)]
        docs = [docs[place] for place in chosen]
    elif spec.list_size and spec.list_size < len(docs):
        chosen = sorted(random.choice(len(docs), spec.list_size, replace=False))
        docs = [docs[place] for place in chosen]
    return docs, [np.float32(targets[doc]) for doc in docs], [labels[doc] for doc in docs]


@pytest.mark.parametrize("order", ["score", "rank"])
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"signal": "labels", "negatives": 3, "depth": 8},
        {"signal": "labels", "negatives": 3, "depth": 8, "add_positives": True},
        {"signal": "scores", "negatives": 3, "depth": 8, "add_positives": True},
        {"signal": "scores", "list_size": 4},
        {"signal": "ranking", "depth": 5, "add_positives": True},
        {"signal": "ranking"},
    ],
)
def test_samples_equal_those_of_a_slow_plain_drawing(tmp_path, settings, order, drop):
    path = tmp_path / "a.run"
    write_run(path, shuffled=True)
    path.write_text(path.read_text().replace(" d7 ", " q7 "))  # a document with a query's id
    spec, runs = run_spec(path, order, **settings), read_run(path, order)
    queries = dict.fromkeys(runs, "text")
    qrels = {query: {f"d{doc}": 1 for doc in range(0, 60, 6)} for query in runs}
    documents = {f"d{doc}" for doc in range(60)} | {"q7"}
    given = ListTeacher(spec, read_lists(spec, {}), queries, qrels, documents, drop_identical=drop)
    for unit, query in enumerate(given.queries):
        scores = {d: s for d, s in runs[query].items() if not (drop and d == query)}
        expected = plain_draw(spec, scores, qrels[query], np.random.default_rng(unit))
        sample = given.draw(unit, np.random.default_rng(unit))
        assert (sample.query_id, list(sample.doc_ids)) == (query, expected[0])
        assert sample.targets_D.dtype == sample.labels_D.dtype == np.float32
        assert (sample.targets_D.tolist(), sample.labels_D.tolist()) == expected[1:]


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
def test_a_duplicate_is_refused_with_its_line_anywhere_in_the_file(tmp_path, order, lines, message):
    (tmp_path / "a.run").write_text(lines)
    with pytest.raises(DataError, match=message):
        read_lists(run_spec(tmp_path / "a.run", order), {})
    with pytest.raises(DataError, match=message):
        read_run(tmp_path / "a.run", order)


@pytest.mark.parametrize("signal", ["scores", "ranking"])
def test_lists_whose_scores_all_tie_are_counted_and_an_error_if_there_is_no_other(signal):
    spec = TeacherSpec.model_validate({"signal": signal, "source": {"type": "teach"}})
    tied = {"q1": {"a": 1.0, "b": 1.0, "c": 1.0}}
    both = ListTeacher(spec, {**tied, "q2": LISTS["q2"]}, QUERIES, QRELS, DOCUMENTS)
    assert (both.counts["used"], both.counts["tied"]) == (2, 1)
    with pytest.raises(DataError, match="scores tie in all of its 1 lists"):
        ListTeacher(spec, tied, QUERIES, QRELS, DOCUMENTS)


def test_labels_over_candidates_that_tie_are_no_error():
    source = {"signal": "labels", "source": {"type": "candidates"}, "negatives": 1}
    tied = {"q1": dict.fromkeys("abc", 1.0)}
    given = ListTeacher(TeacherSpec.model_validate(source), tied, QUERIES, QRELS, DOCUMENTS)
    assert given.counts["used"] == 1


@pytest.mark.parametrize(("drop", "expected"), [(False, ("q1", "a", "b")), (True, ("a", "b"))])
def test_a_document_with_the_id_of_its_query_is_in_no_sample_if_the_collection_drops_it(
    drop, expected
):
    spec = TeacherSpec.model_validate({"signal": "ranking", "source": {"type": "teach"}})
    lists = {"q1": {"q1": 9.0, "a": 2.0, "b": 1.0}}
    documents = DOCUMENTS | {"q1"}
    given = ListTeacher(spec, lists, QUERIES, QRELS, documents, drop_identical=drop)
    sample = given.draw(0, np.random.default_rng(0))
    assert sample.doc_ids == expected
    assert sample.targets_D.tolist() == [-place for place in range(1, len(expected) + 1)]
