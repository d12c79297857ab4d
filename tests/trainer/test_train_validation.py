import shutil
from pathlib import Path

import ir_measures
import pytest
import torch

from xsweep.errors import ConfigError, DivergenceError
from xsweep.evaluator.data.readers import read_texts
from xsweep.evaluator.data.trec import read_qrels, read_run
from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.trainer.specs import TrainSpec
from xsweep.trainer.train import prepare_validation


def test_a_validation_equals_scoring_texts_one_by_one_and_ir_measures(world):
    spec = TrainSpec.model_validate(world.spec())
    model, tokenizer = load_cross_encoder(spec.backbone, seed=1)
    value = prepare_validation(spec, world.inputs, tokenizer)(model)

    documents = dict(read_texts(Path(world.collection["documents"]["path"])))
    queries = dict(read_texts(Path(world.collection["queries"]["path"])))
    run = read_run(world.inputs["validation"] / "candidates.run.gz")
    qrels = read_qrels(world.inputs["validation"] / "qrels.txt")
    reranked = {}
    for query, scores in run.items():
        reranked[query] = {}
        for doc in list(scores)[: spec.validation.depth]:
            text = " ".join(documents[doc].split()[: spec.document_tokens])
            inputs = tokenizer(queries[query], text, return_tensors="pt")
            with torch.no_grad():
                reranked[query][doc] = model(**inputs).logits.item()
    expected = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, reranked)
    assert value == pytest.approx(expected[ir_measures.nDCG @ 10], abs=1e-9)


def test_an_error_names_a_missing_input(world):
    spec = TrainSpec.model_validate(world.spec())
    with pytest.raises(ConfigError, match="'validation_tokens'"):
        prepare_validation(spec, {"validation": world.inputs["validation"]}, None)


def test_the_value_over_two_collections_is_the_mean_of_their_values(world, tmp_path):
    spec = TrainSpec.model_validate(world.spec())
    model, tokenizer = load_cross_encoder(spec.backbone, seed=1)
    # The second collection: the first half of the first one's judgements, 0 where nothing is found.
    other = tmp_path / "other"
    shutil.copytree(world.inputs["validation"], other)
    lines = (other / "qrels.txt").read_text().splitlines(keepends=True)
    (other / "qrels.txt").write_text("".join(lines[: len(lines) // 2]))
    first, second = (
        prepare_validation(spec, world.inputs | {"validation": folder}, tokenizer)(model)
        for folder in (world.inputs["validation"], other)
    )
    assert first != second

    both = spec.validation.model_copy(update={"further": (spec.validation.collection,)})
    inputs = world.inputs | {
        "validation_2": other,
        "validation_tokens_2": world.inputs["validation_tokens"],
    }
    value = prepare_validation(spec.model_copy(update={"validation": both}), inputs, tokenizer)
    assert value(model) == pytest.approx((first + second) / 2, abs=1e-12)


def test_a_model_whose_scores_are_not_finite_has_no_validation_value(world):
    spec = TrainSpec.model_validate(world.spec())
    model, tokenizer = load_cross_encoder(spec.backbone, seed=1)
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    validate = prepare_validation(spec, world.inputs, tokenizer)
    with pytest.raises(DivergenceError, match="no finite value"):
        validate(model)


def test_ranks_share_the_pairs_of_a_validation_and_get_one_value(world, monkeypatch):
    spec = TrainSpec.model_validate(world.spec())
    model, tokenizer = load_cross_encoder(spec.backbone, seed=1)
    validate = prepare_validation(spec, world.inputs, tokenizer)
    alone = validate(model)
    parts = []

    def keep(scores):
        parts.append(scores.clone())
        return scores

    monkeypatch.setattr("xsweep.trainer.train.sum_over_ranks", keep)
    for rank in range(3):
        monkeypatch.setattr("xsweep.trainer.train.rank_and_ranks", lambda rank=rank: (rank, 3))
        validate(model)
    counts = [int((part != 0).sum()) for part in parts]
    assert max(counts) - min(counts) <= 2
    assert sum(counts) == len(parts[0])
    monkeypatch.setattr("xsweep.trainer.train.sum_over_ranks", lambda _: sum(parts))
    assert validate(model) == pytest.approx(alone, abs=1e-12)
