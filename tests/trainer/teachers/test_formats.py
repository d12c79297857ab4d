import pytest

from xsweep.errors import ConfigError, DataError
from xsweep.evaluator.data.trec import write_run
from xsweep.trainer.specs import TeacherSpec
from xsweep.trainer.teachers.lists import read_lists


def source(**settings):
    spec = {"signal": "scores", "source": settings, "list_size": 2}
    if settings["type"] == "candidates":
        spec = {"signal": "labels", "source": settings, "negatives": 1}
    return TeacherSpec.model_validate(spec)


def test_candidates_and_teach_folders_are_read_from_their_inputs(tmp_path):
    run = {"q": {"b": 2.0, "a": 1.0}}
    write_run(tmp_path / "candidates.run.gz", run, "x")
    write_run(tmp_path / "scores.run.gz", {"q": {"a": 5.0, "b": 4.0}}, "x")
    assert read_lists(source(type="candidates"), {"candidates": tmp_path}) == run
    assert list(read_lists(source(type="teach"), {"teacher": tmp_path})["q"]) == ["a", "b"]


def test_an_error_names_a_missing_input():
    with pytest.raises(ConfigError, match="'teacher'"):
        read_lists(source(type="teach"), {})


def test_a_run_is_ordered_by_its_scores_or_by_its_ranks(tmp_path):
    path = tmp_path / "llm.run"
    path.write_text("q\t0\ta\t1\t0.5\tllm\nq\t0\tb\t2\t0.9\tllm\n")
    by_score = source(type="run", file={"path": str(path)})
    by_rank = source(type="run", file={"path": str(path)}, order="rank")
    assert list(read_lists(by_score, {})["q"]) == ["b", "a"]
    assert list(read_lists(by_rank, {})["q"]) == ["a", "b"]


def test_a_file_with_another_checksum_is_refused(tmp_path):
    path = tmp_path / "scores.tsv"
    path.write_text("q\ta\t1\n")
    with pytest.raises(DataError, match="md5"):
        read_lists(source(type="scores", file={"path": str(path), "md5": "0" * 32}), {})


def test_scores_are_sorted_best_first(tmp_path):
    path = tmp_path / "scores.tsv"
    path.write_text("q\ta\t1.5\nq\tb\t-2\nq\tc\t3e1\n")
    lists = read_lists(source(type="scores", file={"path": str(path)}), {})
    assert list(lists["q"].items()) == [("c", 30.0), ("a", 1.5), ("b", -2.0)]


@pytest.mark.parametrize("line", ["q\ta", "q\ta\tx", "q\ta\tnan", "q\td\t1"])
def test_a_malformed_score_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / "scores.tsv"
    path.write_text(f"q\td\t1\n{line}\n")
    with pytest.raises(DataError, match=r"scores\.tsv:2"):
        read_lists(source(type="scores", file={"path": str(path)}), {})


LINES = """\
{"query": "one", "passages": [{"text": "a", "teacher_score": 1}, {"text": "b", "teacher_score": 3}]}
{"query": "two", "passages": [{"text": "c", "label": 1}, {"text": "a"}]}
"""


def test_passages_are_ordered_by_their_scores_and_labels_need_none(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(LINES)
    file = {"path": str(path)}
    spec = {"signal": "labels", "source": {"type": "jsonl", "file": file}, "negatives": 1}
    assert len(read_lists(TeacherSpec.model_validate(spec), {})["2"]) == 2
    scored = source(type="jsonl", file=file)
    with pytest.raises(DataError, match=r"train\.jsonl:2: a passage has no teacher_score"):
        read_lists(scored, {})
    path.write_text(LINES.splitlines()[0] + "\n")
    assert list(read_lists(scored, {})["1"].values()) == [3, 1]


def test_the_mean_of_teachers_ranks_what_all_of_them_list(tmp_path):
    (tmp_path / "llm.run").write_text(
        "".join(f"q 0 {doc} {rank} 0 llm\n" for rank, doc in enumerate("abxc", 1)) + "p 0 a 1 0 x\n"
    )
    (tmp_path / "teach").mkdir()
    run = {"q": {"c": 9.0, "y": 8.0, "a": 2.0, "b": 1.0}}
    write_run(tmp_path / "teach" / "scores.run.gz", run, "x")
    parts = [
        {"type": "run", "file": {"path": str(tmp_path / "llm.run")}, "order": "rank"},
        {"type": "teach", "role": "teacher_2"},
    ]
    spec = {"signal": "ranking", "source": {"type": "mean", "parts": parts}}
    lists = read_lists(TeacherSpec.model_validate(spec), {"teacher_2": tmp_path / "teach"})
    # a, b, c and c, a, b; x, y and the query p are not in both.
    assert {query: list(docs.items()) for query, docs in lists.items()} == {
        "q": [("a", -1.5), ("c", -2.0), ("b", -2.5)]
    }
    with pytest.raises(ValueError, match="a 'mean' source gives ranking, not scores"):
        TeacherSpec.model_validate(spec | {"signal": "scores"})
