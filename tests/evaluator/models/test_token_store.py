import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from xsweep.errors import DataError
from xsweep.evaluator.models.token_store import TokenStore, prepare_tokens
from xsweep.evaluator.models.tokenizer import tokenize
from xsweep.evaluator.specs import TokensSpec

TEXTS = {
    "d1": "the quick brown fox",
    "empty": "",
    "ü 2": "numbers hold numbers " * 20,
    "d3": "the lazy dog",
}


def test_a_store_gives_back_every_documents_ids(
    tmp_path: Path, family: str, make_tokenizer: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xsweep.evaluator.models.token_store.TEXTS_PER_CALL", 3)
    tokenizer = make_tokenizer(family)
    TokenStore.build(tmp_path, TEXTS.items(), tokenizer, max_tokens=12)
    store = TokenStore(tmp_path)
    expected = dict(zip(TEXTS, tokenize(tokenizer, list(TEXTS.values()), 12), strict=True))
    assert {doc_id: store[doc_id].tolist() for doc_id in store} == {
        doc_id: ids.tolist() for doc_id, ids in expected.items()
    }
    assert store.lengths.tolist() == [len(ids) for ids in expected.values()]
    assert (len(store), "d1" in store, "d2" in store) == (4, True, False)
    assert store["d1"].dtype == np.uint16


def test_large_vocabularies_are_stored_in_four_bytes(
    tmp_path: Path, make_tokenizer: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer("bert")
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: 2**16)
    store = TokenStore.build(tmp_path, TEXTS.items(), tokenizer, 12)
    assert store["d1"].dtype == np.uint32


def test_an_unknown_document_is_a_data_error(tmp_path: Path, make_tokenizer: Callable) -> None:
    store = TokenStore.build(tmp_path, TEXTS.items(), make_tokenizer("bert"), 12)
    with pytest.raises(DataError, match="no document 'nobody'"):
        store["nobody"]


def test_a_store_of_nothing_but_empty_texts_opens(tmp_path: Path, make_tokenizer: Callable) -> None:
    store = TokenStore.build(tmp_path, [("a", ""), ("b", "")], make_tokenizer("bert"), 12)
    assert store["b"].tolist() == []


@pytest.mark.parametrize("name", ["ids.bin", "ends.npy", "documents.txt", "tokens.json"])
def test_a_damaged_store_is_a_data_error(
    tmp_path: Path, make_tokenizer: Callable, name: str
) -> None:
    TokenStore.build(tmp_path, TEXTS.items(), make_tokenizer("bert"), 12)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="token store"):
        TokenStore(tmp_path)


def test_prepare_tokens_stores_a_collections_documents(
    tmp_path: Path, make_model_folder: Callable
) -> None:
    for name, content in {
        "d.tsv": "d1\tthe fox\n",
        "q.tsv": "q\tx\n",
        "r.txt": "q 0 d1 1\n",
    }.items():
        (tmp_path / name).write_text(content)
    names = {"documents": "d.tsv", "queries": "q.tsv", "qrels": "r.txt"}
    paths = {role: {"path": str(tmp_path / name)} for role, name in names.items()}
    out = tmp_path / "out"
    out.mkdir()
    spec = TokensSpec.model_validate(
        {
            "documents": {"source": "files", "name": "x", **paths},
            "tokenizer": {"folder": str(make_model_folder("bert"))},
        }
    )
    prepare_tokens(spec, out)
    summary = json.loads((out / "summary.json").read_text())
    length = len(TokenStore(out)["d1"])
    assert summary == {"documents": 1, "documents_without_text": 0, "tokens": length}
    origin = json.loads((out / "provenance.json").read_text())
    assert origin["spec"]["tokenizer"]["folder"] == make_model_folder("bert").name
    assert origin["packages"]["tokenizers"] == version("tokenizers")


def test_ids_that_are_the_numbers_from_0_need_no_dictionary(
    tmp_path: Path, make_tokenizer: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xsweep.evaluator.models.token_store.TEXTS_PER_CALL", 3)
    texts = [(str(row), text) for row, text in enumerate(TEXTS.values())]
    tokenizer = make_tokenizer("bert")
    (tmp_path / "named").mkdir()
    named = TokenStore.build(tmp_path / "named", TEXTS.items(), tokenizer, 12)
    store = TokenStore.build(tmp_path, texts, tokenizer, 12)
    assert store._rows is None
    assert [store[doc_id].tolist() for doc_id in store] == [named[d].tolist() for d in TEXTS]
    assert list(store) == ["0", "1", "2", "3"]
    assert "3" in store
    for unknown in ("4", "-1", "03", " 3", "3.0", "٣", "", "three"):
        assert unknown not in store
        with pytest.raises(DataError, match="has no document"):
            store[unknown]
    # Older stores have no such field.
    settings = json.loads((tmp_path / "tokens.json").read_text())
    del settings["numbered"]
    (tmp_path / "tokens.json").write_text(json.dumps(settings))
    older = TokenStore(tmp_path)
    assert isinstance(older._rows, dict)
    assert [older[d].tolist() for d in older] == [store[d].tolist() for d in store]


def test_numbers_out_of_order_are_ordinary_ids(tmp_path: Path, make_tokenizer: Callable) -> None:
    store = TokenStore.build(tmp_path, [("1", "the fox"), ("0", "dog")], make_tokenizer("bert"), 9)
    assert isinstance(store._rows, dict)
    assert len(store["1"]) > len(store["0"])
