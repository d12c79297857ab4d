import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xsweep.errors import DataError
from xsweep.evaluator import first_stage
from xsweep.evaluator.data.collection import Collection
from xsweep.evaluator.data.trec import sort_docs
from xsweep.evaluator.first_stage import retrieve


def _collection(ids: list[str]) -> Collection:
    return Collection("c", lambda: ((name, name) for name in ids), {}, {})


@given(data=st.data(), chunk=st.integers(1, 7), depth=st.integers(1, 6), positive=st.booleans())
@settings(deadline=None)
def test_chunks_give_what_sorting_all_scores_gives(
    data: st.DataObject, chunk: int, depth: int, positive: bool
) -> None:
    ids = data.draw(st.lists(st.text("ab1_é", min_size=1), min_size=1, max_size=20, unique=True))
    values = st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0])
    rows = {name: [data.draw(values), data.draw(values)] for name in ids}
    kept, first_stage.TEXTS_PER_CHUNK = first_stage.TEXTS_PER_CHUNK, chunk
    try:
        run, count = retrieve(
            _collection(ids),
            {"q0": "", "q1": ""},
            lambda texts: np.array([rows[text] for text in texts], dtype=np.float32),
            depth,
            positive_only=positive,
        )
    finally:
        first_stage.TEXTS_PER_CHUNK = kept
    assert count == len(ids)
    for place, query in enumerate(("q0", "q1")):
        scores = {name: row[place] for name, row in rows.items() if row[place] > 0 or not positive}
        assert list(run.get(query, {}).items()) == sort_docs(scores)[:depth]


def test_an_empty_collection_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no documents to retrieve"):
        retrieve(_collection([]), {"q": ""}, lambda texts: np.zeros((0, 1)), 5)


def test_progress_counts_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_stage, "TEXTS_PER_CHUNK", 2)
    heard: list[tuple[int, int]] = []
    retrieve(
        _collection(["a", "b", "c"]),
        {"q": ""},
        lambda texts: np.ones((len(texts), 1), dtype=np.float32),
        5,
        report=lambda done, total: heard.append((done, total)),
    )
    assert heard == [(2, 3), (3, 3)]
