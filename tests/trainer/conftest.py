"""A tiny training set-up: a collection in files, its candidates, tokens and a small BERT."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import write_backbone, write_collection


def write_candidates(folder: Path, collection: dict, depth: int = 12, seed: int = 5) -> Path:
    """First-stage candidates: random documents and the relevant one."""
    from xsweep.evaluator.data.readers import read_texts
    from xsweep.evaluator.data.trec import read_qrels, write_run

    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    documents = [doc for doc, _ in read_texts(Path(collection["documents"]["path"]))]
    queries = dict(read_texts(Path(collection["queries"]["path"])))
    qrels = read_qrels(collection["qrels"]["path"])
    run = {}
    for query in queries:
        docs = {*random.choice(documents, depth - 1, replace=False).tolist(), *qrels[query]}
        run[query] = {
            doc: float(score)
            for doc, score in zip(sorted(docs), random.random(depth), strict=False)
        }
    write_run(folder / "candidates.run.gz", run, "random")
    with gzip.open(folder / "queries.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"id": q, "text": t}) + "\n" for q, t in queries.items())
    (folder / "qrels.txt").write_text(Path(collection["qrels"]["path"]).read_text())
    return folder


class World:
    """The folders of one tiny training; `spec(...)` gives its specification with changes."""

    def __init__(self, home: Path, model: dict | None = None) -> None:
        from xsweep.evaluator.data.readers import read_texts
        from xsweep.evaluator.data.trec import read_run, write_run
        from xsweep.evaluator.models.token_store import TokenStore
        from xsweep.evaluator.models.tokenizer import load_tokenizer
        from xsweep.evaluator.specs import ModelSpec

        self.home = home
        self.model = model or {"folder": str(write_backbone(home / "backbone"))}
        self.backbone = Path(self.model["folder"])
        self.collection = write_collection(home / "collection")
        candidates = write_candidates(home / "candidates", self.collection)
        tokenizer = load_tokenizer(ModelSpec.model_validate(self.model))
        (home / "tokens").mkdir()
        documents = read_texts(Path(self.collection["documents"]["path"]))
        TokenStore.build(home / "tokens", documents, tokenizer, 64)
        (home / "teacher").mkdir()
        random = np.random.default_rng(11)
        run = read_run(candidates / "candidates.run.gz")
        words = {
            text_id: set(text.split())
            for part in ("documents", "queries")
            for text_id, text in read_texts(Path(self.collection[part]["path"]))
        }
        scores = {
            query: {doc: len(words[query] & words[doc]) + random.random() for doc in docs}
            for query, docs in run.items()
        }
        write_run(home / "teacher" / "scores.run.gz", scores, "teacher")
        self.inputs = {
            "candidates": candidates,
            "teacher": home / "teacher",
            "tokens": home / "tokens",
            "validation": candidates,
            "validation_tokens": home / "tokens",
        }

    def spec(self, objective: str = "infonce", **optimisation: object) -> dict:
        teachers = {
            "bce": {"signal": "labels", "source": {"type": "candidates"}, "negatives": 1},
            "infonce": {"signal": "labels", "source": {"type": "candidates"}, "negatives": 5},
            "margin_mse": {"signal": "scores", "source": {"type": "teach"}, "negatives": 1},
            "adr_mse": {"signal": "ranking", "source": {"type": "teach"}, "list_size": 6},
        }
        teachers |= {"hinge": teachers["bce"], "distill_ranknet": teachers["adr_mse"]}
        defaults = {
            "steps": 6,
            "warmup_steps": 2,
            "lr": 1e-3,
            "batch_queries": 5,
            "engine": "plain",
            "micro_batch_tokens": 400,
            "forward_tokens": 150,
        }
        return {
            "backbone": self.model,
            "objective": {"name": objective},
            "teacher": teachers[objective],
            "collection": self.collection,
            "optimisation": defaults | optimisation,
            "seed": 12,
            "query_tokens": 4,
            "document_tokens": 24,
            "validation": {"collection": self.collection, "every_steps": 3, "depth": 10},
        }

    def prepared(self, *, packed: bool = False, **settings: object) -> tuple:
        """A model in `eval`, its tokenizer, an assembler and five lists of 2 to 6 documents."""
        from xsweep.evaluator.data.readers import read_texts
        from xsweep.evaluator.models.token_store import TokenStore
        from xsweep.evaluator.models.tokenizer import tokenize
        from xsweep.evaluator.pairs import PairEncoder
        from xsweep.trainer.batching import Assembler
        from xsweep.trainer.specs import TrainSpec
        from xsweep.trainer.teachers import Sample
        from xsweep.trainer.train import load_start

        spec = TrainSpec.model_validate(self.spec(**settings))
        model, tokenizer = load_start(spec, {})
        documents = TokenStore(self.inputs["tokens"])
        texts = dict(read_texts(Path(self.collection["queries"]["path"])))
        ids = tokenize(tokenizer, list(texts.values()), spec.query_tokens)
        queries = dict(zip(texts, ids, strict=True))
        encoder = PairEncoder(tokenizer)
        assembler = Assembler(spec, encoder, documents, queries, packed=packed)
        random = np.random.default_rng(4)
        samples = []
        for query, size in enumerate([3, 6, 2, 5, 4]):
            doc_ids = tuple(f"d{number}" for number in random.choice(80, size, replace=False))
            targets_D, labels_D = random.normal(size=size).astype("f4"), np.zeros(size, dtype="f4")
            samples.append(Sample(f"q{query}", doc_ids, targets_D, labels_D))
        return model, tokenizer, assembler, samples


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Built once and not modified."""
    return World(tmp_path_factory.mktemp("world"))
