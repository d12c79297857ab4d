import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from xsweep.errors import ConfigError, DataError, DivergenceError
from xsweep.evaluator.first_stage import prepare_candidates, read_candidates
from xsweep.evaluator.models.splade import encode, load_splade
from xsweep.evaluator.specs import CandidatesSpec, ModelSpec

DOCUMENTS = {
    "d1": "the quick brown fox",
    "d2": "numpy arrays hold numbers; tensors hold numbers too, on a gpu",
    "d3": "an information retrieval system ranks documents for a query",
    "d4": "what is the capital of france",
}
QUERIES = {"q1": "quick fox", "q2": "numbers in arrays"}


@pytest.fixture(scope="module")
def masked_model(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable) -> Path:
    """A random masked language model whose logits are positive for about half of the words."""
    folder = tmp_path_factory.mktemp("splade")
    tokenizer = make_tokenizer("bert")
    torch.manual_seed(3)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = BertConfig(
        vocab_size=len(tokenizer), num_attention_heads=2, initializer_range=0.3, **shape
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _weights(folder: Path, tokenizer, text: str, max_tokens: int) -> torch.Tensor:
    """SPLADE-max of one text, by its definition."""
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    batch = tokenizer(text, truncation=True, max_length=max_tokens + 2, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits[0]
    return torch.log1p(torch.relu(logits)).amax(0)


def test_weights_are_the_maximum_over_tokens(masked_model: Path, make_tokenizer: Callable) -> None:
    splade = load_splade(ModelSpec(folder=str(masked_model)))
    texts = list(DOCUMENTS.values())
    found = encode(splade, texts, 6, batch_tokens=24).toarray()
    assert 0.1 < (found > 0).mean() < 0.9
    for row, text in zip(found, texts, strict=True):
        expected = _weights(masked_model, make_tokenizer("bert"), text, 6)
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_weights_equal_sentence_transformers_sparse_encoder(
    masked_model: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SparseEncoder

    theirs = SparseEncoder(str(masked_model), device="cpu")
    texts = list(DOCUMENTS.values())
    expected = theirs.encode(texts, convert_to_sparse_tensor=False).numpy()
    found = encode(load_splade(ModelSpec(folder=str(masked_model))), texts, 500).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    theirs.save_pretrained(str(tmp_path))
    saved = encode(load_splade(ModelSpec(folder=str(tmp_path))), texts, 500).toarray()
    np.testing.assert_allclose(saved, expected, atol=1e-5)


def test_unsupported_sparse_encoders_are_config_errors(masked_model: Path, tmp_path: Path) -> None:
    for file in masked_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "config.json").write_text(json.dumps({"pooling_strategy": "sum"}))
    modules = [
        {"type": "x.MLMTransformer", "path": ""},
        {"type": "x.SpladePooling", "path": "pool"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match=r"SpladePooling .*sum.* is not supported"):
        load_splade(ModelSpec(folder=str(tmp_path)))
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "x.Router", "path": ""}]))
    with pytest.raises(ConfigError, match="Router"):
        load_splade(ModelSpec(folder=str(tmp_path)))


def test_a_model_without_a_word_head_is_a_data_error(make_model_folder: Callable) -> None:
    with pytest.raises(DataError, match="no masked language model, it lacks cls"):
        load_splade(ModelSpec(folder=str(make_model_folder("bert"))))


def _prepare(folder: Path, stage: dict, depth: int) -> Path:
    (folder / "docs.tsv").write_text("".join(f"{n}\t{text}\n" for n, text in DOCUMENTS.items()))
    (folder / "queries.tsv").write_text("".join(f"{n}\t{text}\n" for n, text in QUERIES.items()))
    (folder / "qrels.txt").write_text("q1 0 d1 1\nq2 0 d2 1\n")
    names = {"documents": "docs.tsv", "queries": "queries.tsv", "qrels": "qrels.txt"}
    paths = {role: {"path": str(folder / name)} for role, name in names.items()}
    collection = {"source": "files", "name": "tiny", **paths}
    spec = {"collection": collection, "first_stage": stage, "depth": depth}
    out = folder / "out"
    out.mkdir()
    prepare_candidates(CandidatesSpec.model_validate(spec), out)
    return out


def test_a_sparse_first_stage_scores_sums_of_products(
    masked_model: Path, make_tokenizer: Callable, tmp_path: Path
) -> None:
    stage = {"type": "splade", "model": {"folder": str(masked_model)}}
    out = _prepare(tmp_path, stage, depth=3)
    tokenizer = make_tokenizer("bert")
    run = read_candidates(out).run
    for query, text in QUERIES.items():
        query_V = _weights(masked_model, tokenizer, text, 32)
        expected = {
            name: float(query_V @ _weights(masked_model, tokenizer, document, 256))
            for name, document in DOCUMENTS.items()
        }
        best = sorted(expected, key=lambda name: -expected[name])[:3]
        assert list(run[query]) == best
        assert run[query] == pytest.approx({name: expected[name] for name in best}, rel=1e-4)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["documents"], list(summary["recall"])) == (4, ["R@3"])


def test_documents_without_a_common_word_are_no_candidates_of_a_sparse_first_stage(
    masked_model: Path, tmp_path: Path
) -> None:
    for file in masked_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = BertForMaskedLM.from_pretrained(tmp_path)
    with torch.no_grad():
        model.get_output_embeddings().bias.fill_(-100.0)  # no word has a weight
    model.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="the first stage finds nothing"):
        _prepare(tmp_path, {"type": "splade", "model": {"folder": str(tmp_path)}}, depth=3)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_dense_first_stage_equals_sentence_transformers(
    make_model_folder: Callable, tmp_path: Path, similarity: str
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = make_model_folder("bert")
    stage = {
        "type": "dense",
        "model": {"folder": str(folder)},
        "similarity": similarity,
        "query_prefix": "query: ",
    }
    run = read_candidates(_prepare(tmp_path, stage, depth=4)).run
    theirs = SentenceTransformer(str(folder), device="cpu")
    unit = {"normalize_embeddings": similarity == "cosine"}
    documents = theirs.encode(list(DOCUMENTS.values()), **unit)
    queries = theirs.encode([f"query: {text}" for text in QUERIES.values()], **unit)
    for query, scores in zip(QUERIES, queries @ documents.T, strict=True):
        expected = dict(zip(DOCUMENTS, scores.tolist(), strict=True))
        assert run[query] == pytest.approx(expected, abs=1e-4)
        assert list(run[query]) == sorted(expected, key=lambda name: -expected[name])


def test_word_weights_that_are_not_finite_are_an_error(masked_model: Path) -> None:
    splade = load_splade(ModelSpec(folder=str(masked_model)))
    with torch.no_grad():
        splade.model.get_output_embeddings().bias.fill_(float("nan"))
    with pytest.raises(DivergenceError, match="no finite value to 2 of 2 texts"):
        encode(splade, ["a fox", "a cow"], 8)
