import numpy as np
import pytest

from xsweep.errors import DataError
from xsweep.trainer.specs import TeacherSpec
from xsweep.trainer.teachers.lists import ListTeacher

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


def test_labels_put_a_found_positive_first_and_distinct_non_relevant_documents_after_it():
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
    assert given.counts == {"used": 1, "no_text": 1, "no_positive": 1, "too_short": 0}
    assert list(given.queries) == ["q1"]


def test_added_positives_are_used_though_the_list_misses_them():
    given = teacher(negatives=2, add_positives=True)
    assert given.counts["used"] == 2
    assert {sample.doc_ids[0] for sample in draws(given)} == {"b", "d", "z"}
    assert {sample.doc_ids[0] for sample in draws(given, unit=1)} == {"y"}


def test_only_documents_that_the_teacher_scored_are_added_to_scores():
    given = teacher("scores", "teach", negatives=1, add_positives=True)
    assert given.counts["used"] == 1
    assert {sample.doc_ids[0] for sample in draws(given)} == {"b", "d"}


def test_the_relevant_grade_decides_what_is_positive():
    given = teacher(negatives=1, relevant_grade=2)
    assert {sample.doc_ids[0] for sample in draws(given)} == {"b"}
    assert "d" in {sample.doc_ids[1] for sample in draws(given)}


def test_depth_cuts_the_list_before_anything_is_drawn():
    given = teacher(negatives=5, depth=3)
    assert {doc for sample in draws(given) for doc in sample.doc_ids} == {"a", "b", "c"}


def test_fewer_negatives_than_asked_are_all_used():
    assert len(draws(teacher(negatives=7))[0].doc_ids) == 4


def test_scores_follow_their_documents():
    for sample in draws(teacher("scores", "teach", list_size=3)):
        assert len(set(sample.doc_ids)) == 3
        assert sample.targets_D.tolist() == [LISTS["q1"][doc] for doc in sample.doc_ids]


def test_a_ranking_is_the_negated_rank_in_the_whole_list():
    sample = teacher("ranking", "teach").draw(0, np.random.default_rng(0))
    assert sample.doc_ids == ("a", "b", "c", "d", "e")
    assert sample.targets_D.tolist() == [-1, -2, -3, -4, -5]


def test_an_unknown_document_is_an_error_that_names_it():
    spec = TeacherSpec.model_validate(
        {"signal": "labels", "source": {"type": "candidates"}, "negatives": 1}
    )
    with pytest.raises(DataError, match="'e' \\(query 'q1'\\)"):
        ListTeacher(spec, LISTS, QUERIES, QRELS, DOCUMENTS - {"e"})


def test_a_teacher_that_leaves_no_query_says_why():
    spec = TeacherSpec.model_validate(
        {"signal": "labels", "source": {"type": "candidates"}, "negatives": 1}
    )
    with pytest.raises(DataError, match="'no_positive': 2"):
        ListTeacher(spec, LISTS, QUERIES, {}, DOCUMENTS)
