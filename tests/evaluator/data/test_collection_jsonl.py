import json

import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.readers import read_records
from xsweep.evaluator.specs import JsonlSpec

LINES = [
    {"query": "one", "passages": [{"text": "a", "label": 1, "teacher_score": 2.5}, {"text": "b"}]},
    {"query": "two", "qid": "7", "passages": [{"text": "b", "label": 0, "teacher_score": -1}]},
]


def write(path, lines=LINES):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_passages_queries_and_labels_make_a_collection_in_which_equal_texts_are_one(tmp_path):
    file = {"path": str(write(tmp_path / "train.jsonl"))}
    collection = load_collection(JsonlSpec(name="x", file=file))
    texts = dict(collection.documents())
    assert sorted(texts.values()) == ["a", "b"]
    assert collection.queries == {"1": "one", "2": "two"}
    relevant = {query: list(docs) for query, docs in collection.qrels.items()}
    assert [texts[doc] for doc in relevant["1"]] == ["a"]
    assert relevant["2"] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected an object"),
        ("[]", "expected an object"),
        ('{"query": "q"}', "no 'passages'"),
        ('{"query": "q", "passages": []}', "no passages"),
        ('{"query": " ", "passages": [{"text": "a"}]}', "the query has no text"),
        ('{"query": "q", "passages": [{"text": ""}]}', "a passage has no text"),
        ('{"query": "q", "passages": [{"text": "a", "label": 0.5}]}', "not a whole number"),
        ('{"query": "q", "passages": [{"text": "a", "teacher_score": NaN}]}', "not a finite"),
    ],
)
def test_a_wrong_line_is_refused_with_its_place(tmp_path, line, message):
    path = write(tmp_path / "train.jsonl", LINES[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        list(read_records(path))
    assert "train.jsonl:2:" in str(caught.value)


def test_the_published_samples_are_read_whole(real_data):
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
