"""Parquet files in the schemas of published data sets, read as they are."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.collection import Collection
from xsweep.evaluator.data.files import checksum_of, from_hub, parquet_files
from xsweep.evaluator.specs import ParquetSpec
from xsweep.trainer.specs import TeacherSpec
from xsweep.trainer.teachers.lists import ListTeacher, read_lists
from xsweep.trainer.teachers.pairs import open_pairs

DOCUMENTS = [str(number) for number in range(100)]
COLLECTION = Collection("c", lambda: iter(()), {"q1": "one", "q2": "two", "7": "three"}, {})
RANDOM = np.random.default_rng(0)


def write(path: Path, table: dict, group: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=group)
    return path


def teacher_spec(path: Path | str, signal: str, columns: dict, **settings) -> TeacherSpec:
    lists = {"lists": settings.pop("lists")} if "lists" in settings else {}
    source = {"type": "parquet", "file": {"path": str(path)}, "columns": columns, **lists}
    return TeacherSpec.model_validate({"signal": signal, "source": source, **settings})


def pairs_of(spec: TeacherSpec):
    return open_pairs(spec.source, COLLECTION, DOCUMENTS)


TRIPLE = {"query_id": "query_id", "positive_id": "positive_id", "negative_id": "negative_id"}


def test_triplets_of_ids_are_pairs(tmp_path):
    """sentence-transformers/msmarco, `triplets`."""
    table = {"query_id": ["q1", "q2"], "positive_id": ["3", "4"], "negative_id": ["5", "6"]}
    teacher = pairs_of(teacher_spec(write(tmp_path / "a.parquet", table), "labels", TRIPLE))
    assert len(teacher) == 2
    assert teacher.draw(1)[:2] == ("q2", ("4", "6"))
    assert teacher.draw(1).targets_D.tolist() == [1, 0]


def test_a_margin_is_the_difference_of_two_scores(tmp_path):
    """sentence-transformers/msmarco, `bert-ensemble-margin-mse`."""
    table = {name: ["q1"] if name == "query_id" else ["3"] for name in TRIPLE}
    table |= {"negative_id": ["5"], "score": [-2.25]}
    columns = TRIPLE | {"score": "score"}
    sample = pairs_of(teacher_spec(write(tmp_path / "a.parquet", table), "scores", columns)).draw(0)
    assert sample.doc_ids == ("3", "5")
    assert sample.targets_D.tolist() == [-2.25, 0]
    assert sample.labels_D.tolist() == [1, 0]


SCORED = {"query_id": "query_id", "document_id": "passage_id", "score": "score"}


def test_scored_rows_make_lists_or_samples_of_one_document(tmp_path):
    """sentence-transformers/msmarco, `bert-ensemble-mse`; rows of a query need not be together."""
    table = {"query_id": ["q1", "q2", "q1"], "passage_id": ["3", "4", "5"]}
    path = write(tmp_path / "a.parquet", table | {"score": [0.5, 1.5, 2.5]})
    lists = read_lists(teacher_spec(path, "scores", SCORED), {})
    assert lists == {"q1": {"5": 2.5, "3": 0.5}, "q2": {"4": 1.5}}
    rows = pairs_of(teacher_spec(path, "scores", SCORED, lists=False))
    samples = [rows.draw(unit) for unit in range(len(rows))]
    assert [each[:2] for each in samples] == [("q1", ("3",)), ("q2", ("4",)), ("q1", ("5",))]
    assert [each.targets_D.tolist() for each in samples] == [[0.5], [1.5], [2.5]]


def test_a_rank_is_the_place_in_a_rows_list(tmp_path):
    """sentence-transformers/msmarco, `rankzephyr-colbert`: Rank-DistiLLM's rankings."""
    table = {"query_id": ["q1", "q2"], "doc_ids": [["9", "3", "5"], ["4", "2"]]}
    columns = {"query_id": "query_id", "document_id": "doc_ids"}
    lists = read_lists(teacher_spec(write(tmp_path / "a.parquet", table), "ranking", columns), {})
    assert lists == {"q1": {"9": 3, "3": 2, "5": 1}, "q2": {"4": 2, "2": 1}}
    assert list(lists["q1"]) == ["9", "3", "5"]


def test_labels_of_a_list_are_those_of_the_file(tmp_path):
    """sentence-transformers/msmarco, `labeled-list`."""
    table = {"query_id": ["q1"], "doc_ids": [["9", "3", "5"]], "labels": [[0, 1, 0]]}
    columns = {"query_id": "query_id", "document_id": "doc_ids", "label": "labels"}
    spec = teacher_spec(write(tmp_path / "a.parquet", table), "labels", columns, negatives=1)
    lists = read_lists(spec, {})
    assert list(lists["q1"]) == ["9", "3", "5"]
    assert lists.labels == {"q1": {"3": 1}}


def test_scores_of_a_list_with_its_positives(tmp_path):
    """cross-encoder/lightonai-embeddings-fine-tuning-reranked-v1, `scores`: ids are numbers."""
    table = {"query_id": [7], "document_ids": [[9, 3]], "scores": [[-1.5, 11.25]]}
    table |= {"positive_ids": [[3]]}
    columns = {"query_id": "query_id", "document_id": "document_ids", "score": "scores"}
    columns |= {"positive_ids": "positive_ids"}
    lists = read_lists(teacher_spec(write(tmp_path / "a.parquet", table), "scores", columns), {})
    assert lists == {"7": {"3": 11.25, "9": -1.5}}
    assert lists.labels == {"7": {"3": 1}}


ETTIN = {"query": "query", "document": "document", "score": "label"}
ROWS = {
    "query": ["who?", "who?", "where?"],
    "document": ["she", "they", "she"],
    "label": pa.array([12.5, -3.25, 0.5], pa.float32()),
}


def texts_of(path: Path | str, columns: dict) -> dict[str, str]:
    spec = {"name": "mine", "file": {"path": str(path)}, "columns": columns}
    return dict(load_collection(ParquetSpec.model_validate(spec)).documents())


@pytest.mark.parametrize("lists", [False, True])
def test_rows_with_their_texts_are_their_own_collection(tmp_path, lists):
    """cross-encoder/ettin-reranker-v1-data: the teacher's score is called label."""
    path = write(tmp_path / "agnews" / "train-00000-of-00001.parquet", ROWS).parent
    texts = texts_of(path, ETTIN)
    assert texts == {"0": "who?", "1": "she", "2": "who?", "3": "they", "4": "where?", "5": "she"}
    spec = teacher_spec(path, "scores", ETTIN, lists=lists)
    if lists:
        found = read_lists(spec, {})
        assert found == {"0": {"1": 12.5, "3": -3.25}, "4": {"5": 0.5}}
        return
    nothing = Collection("own", lambda: iter(()), {}, {})
    rows = open_pairs(spec.source, nothing, texts)
    for unit, (query, document) in enumerate(zip(ROWS["query"], ROWS["document"], strict=True)):
        sample = rows.draw(unit)
        assert (texts[sample.query_id], texts[sample.doc_ids[0]]) == (query, document)
        assert sample.targets_D.tolist() == [ROWS["label"][unit].as_py()]


def test_labeled_pairs_and_lists_of_texts_have_the_labels_of_the_file(tmp_path):
    """sentence-transformers' `labeled-pair` and `labeled-list` of mined negatives."""
    pairs = {"query": ["who?", "who?"], "answer": ["she", "it"], "label": [1, 0]}
    lists = {"query": ["who?"], "docs": [["she", "it"]], "labels": [[1, 0]]}
    names = ({"document": "answer", "label": "label"}, {"document": "docs", "label": "labels"})
    for name, table, columns in zip("ab", (pairs, lists), names, strict=True):
        path = write(tmp_path / f"{name}.parquet", table)
        columns = {"query": "query"} | columns
        found = read_lists(teacher_spec(path, "labels", columns, negatives=1), {})
        texts = texts_of(path, columns)
        (query_id,) = found
        (doc_id,) = found.labels[query_id]
        assert (texts[query_id], texts[doc_id]) == ("who?", "she")
        assert [texts[each] for each in found[query_id]] == ["she", "it"]
    single = teacher_spec(tmp_path / "a.parquet", "labels", {**columns, **names[0]}, lists=False)
    nothing = Collection("own", lambda: iter(()), {}, {})
    rows = open_pairs(single.source, nothing, texts_of(tmp_path / "a.parquet", columns | names[0]))
    assert [rows.draw(unit).targets_D.tolist() for unit in (0, 1)] == [[1], [0]]


def test_triplets_of_texts_with_a_margin(tmp_path):
    table = {"query": ["q", "r"], "positive": ["a", "b"], "negative": ["c", "d"]}
    columns = {name: name for name in (*table, "score")}
    path = write(tmp_path / "a.parquet", table | {"score": [1.5, 2.5]})
    texts = texts_of(path, columns)
    nothing = Collection("own", lambda: iter(()), {}, {})
    for signal, targets in (("scores", [2.5, 0]), ("labels", [1, 0])):
        named = {name: name for name in columns if (name, signal) != ("score", "labels")}
        spec = teacher_spec(path, signal, named)
        sample = open_pairs(spec.source, nothing, texts).draw(1)
        found = [texts[each] for each in (sample.query_id, *sample.doc_ids)]
        assert (found, sample.targets_D.tolist()) == (["r", "b", "d"], targets)


def test_the_best_documents_of_a_list_can_be_its_labels(tmp_path):
    path = write(tmp_path / "a.parquet", ROWS)
    spec = teacher_spec(path, "labels", ETTIN, top_relevant=1, negatives=1)
    texts = texts_of(path, ETTIN)
    teacher = ListTeacher(spec, read_lists(spec, {}), texts, {}, texts)
    sample = teacher.draw(0, RANDOM)
    assert [texts[each] for each in sample.doc_ids] == ["she", "they"]
    assert sample.targets_D.tolist() == sample.labels_D.tolist() == [1, 0]
    assert teacher.counts["too_short"] == 1  # "where?" has one document


@pytest.mark.parametrize(
    ("columns", "signal", "settings", "message"),
    [
        ({"query_id": "q", "document": "d"}, "scores", {}, "name the columns of one form"),
        ({"query": "q", "document": "d"}, "scores", {}, "scores need the column `score`"),
        ({"query": "q", "document": "d"}, "labels", {"negatives": 1}, "need the column `label`"),
        ({"query": "q", "document": "d"}, "ranking", {"lists": False}, "a ranking needs lists"),
        (ETTIN, "scores", {"lists": False, "list_size": 2}, "holds finished pairs"),
        (ETTIN, "labels", {"lists": False}, "labels of pairs leave out the column `score`"),
    ],
)
def test_columns_that_cannot_give_the_signal_are_refused(columns, signal, settings, message):
    with pytest.raises(ValueError, match=message):
        teacher_spec("a.parquet", signal, columns, **settings)


def test_wrong_files_are_answered_with_what_is_there(tmp_path):
    path = write(tmp_path / "a.parquet", {"query": ["q"], "text": ["d"], "label": [1.0]})
    with pytest.raises(DataError, match="no column 'document', there are query, text, label"):
        texts_of(path, ETTIN)
    with pytest.raises(DataError, match="there are no Parquet files"):
        texts_of(tmp_path / "b-*.parquet", ETTIN)
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"c\.parquet: cannot be read"):
        texts_of(tmp_path / "c.parquet", ETTIN)
    path = write(tmp_path / "d.parquet", {"query_id": ["q1", None], "p": ["3", "4"], "s": [1, 2]})
    columns = {"query_id": "query_id", "document_id": "p", "score": "s"}
    spec, rows = (teacher_spec(path, "scores", columns, lists=lists) for lists in (True, False))
    with pytest.raises(DataError, match=r"d\.parquet:2: the row has an empty cell"):
        read_lists(spec, {})
    with pytest.raises(DataError, match=r"d\.parquet:2: the row has an empty cell"):
        pairs_of(rows)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"s": [1.0]}, "its lists differ in length"),
        ({"s": [1.0, None]}, "the row has an empty cell"),
        ({"s": [1.0, float("nan")]}, "a score is not a finite number"),
        ({"s": None}, "the row has an empty cell"),
        ({"l": [1]}, "its lists differ in length"),
        ({"d": ["3", None]}, "the row has an empty cell"),
    ],
)
def test_a_row_whose_lists_do_not_fit_is_refused(tmp_path, cells, message):
    fine = {"q": "q0", "d": ["1", "2"], "s": [5.0, 6.0], "l": [0, 0]}
    wrong = {"q": "q1", "d": ["3", "4"], "s": [1.0, 2.0], "l": [1, 0]} | cells
    path = write(tmp_path / "a.parquet", {name: [fine[name], wrong[name]] for name in fine})
    columns = {"query_id": "q", "document_id": "d", "score": "s", "label": "l"}
    with pytest.raises(DataError, match=rf"a\.parquet:2: {message}"):
        read_lists(teacher_spec(path, "scores", columns), {})


@pytest.mark.parametrize("large", [False, True])
def test_texts_have_the_numbers_of_their_collection_whatever_the_batches(
    tmp_path, monkeypatch, large
):
    monkeypatch.setattr("xsweep.evaluator.data.readers.BATCH_ROWS", 2)
    kind = pa.large_list if large else pa.list_
    docs = [["a", "b"], ["c"], [], ["d", "e", "f"], ["g"]]
    scores = [[1.0, 2.0], [3.0], [], [4.0, 5.0, 6.0], [7.0]]
    table = {
        "query": ["q", "r", "q", "q", "s"],
        "docs": pa.array(docs, kind(pa.string())),
        "scores": pa.array(scores, kind(pa.float32())),
    }
    path = write(tmp_path / "a.parquet", table)
    columns = {"query": "query", "document": "docs", "score": "scores"}
    texts = texts_of(path, columns)
    lists = read_lists(teacher_spec(path, "scores", columns), {})
    found = {
        texts[query]: {texts[doc]: score for doc, score in scored.items()}
        for query, scored in lists.items()
    }
    assert found == {
        "q": {"f": 6.0, "e": 5.0, "d": 4.0, "b": 2.0, "a": 1.0},
        "r": {"c": 3.0},
        "s": {"g": 7.0},
    }


def test_the_checksum_of_a_folder_is_that_of_its_parquet_files(tmp_path):
    tmp_path = tmp_path / "part"
    for name in ("train-0.parquet", "train-1.parquet", "test-0.parquet"):
        write(tmp_path / name, {"a": [name]})
    whole, part = checksum_of(tmp_path), checksum_of(tmp_path / "train-*.parquet")
    assert parquet_files(tmp_path.parent / "*" / "train-*.parquet") == [
        tmp_path / "train-0.parquet",
        tmp_path / "train-1.parquet",
    ]
    (tmp_path / "README.md").write_text("a note")
    assert (checksum_of(tmp_path), checksum_of(tmp_path / "train-*.parquet")) == (whole, part)
    write(tmp_path / "test-0.parquet", {"a": ["other"]})
    assert checksum_of(tmp_path) != whole
    assert checksum_of(tmp_path / "train-*.parquet") == part


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set in the cache of the Hugging Face Hub, which cannot be reached."""
    cache = tmp_path / "hub"
    repo = cache / "datasets--cross-encoder--ettin-reranker-v1-data"
    commit = "0123456789" * 4
    write(repo / "snapshots" / commit / "agnews" / "train-00000-of-00001.parquet", ROWS)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return commit


def test_a_data_set_of_the_hub_is_known_by_its_commit_and_read_from_the_cache(hub):
    path = "hf://datasets/cross-encoder/ettin-reranker-v1-data/agnews"
    pinned, _ = from_hub(path, download=False)
    assert pinned == f"hf://datasets/cross-encoder/ettin-reranker-v1-data@{hub}/agnews"
    for each in (path, pinned, f"{pinned}/train-*.parquet"):
        assert texts_of(each, ETTIN)["3"] == "they"
    with pytest.raises(DataError, match="nobody/nothing: cannot be fetched"):
        texts_of("hf://datasets/nobody/nothing", ETTIN)
