"""A tiny world for tests: a BERT with random weights, a collection in files, a grid over both."""

import json
from pathlib import Path

import numpy as np

WORDS = [f"w{number}" for number in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_backbone(folder: Path, dropout: float = 0.1) -> Path:
    """A two-layer BERT with random weights and a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": f"[{name.upper()}]" for name in names},
    ).save_pretrained(folder)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def write_collection(folder: Path, queries: int = 24, documents: int = 80, seed: int = 3) -> dict:
    """Documents of random words; a query repeats words of its one relevant document."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    texts = [
        " ".join(random.choice(WORDS, size=int(random.integers(4, 30)))) for _ in range(documents)
    ]
    lines = [f"d{number}\t{text}\n" for number, text in enumerate(texts)]
    (folder / "documents.tsv").write_text("".join(lines))
    asked = {f"q{number}": texts[number].split()[:4] for number in range(queries)}
    lines = [f"{query}\t{' '.join(words)}\n" for query, words in asked.items()]
    (folder / "queries.tsv").write_text("".join(lines))
    lines = [f"q{number} 0 d{number} 1\n" for number in range(queries)]
    (folder / "qrels.txt").write_text("".join(lines))
    return {
        "name": folder.name,
        "source": "files",
        "documents": {"path": str(folder / "documents.tsv")},
        "queries": {"path": str(folder / "queries.tsv")},
        "qrels": {"path": str(folder / "qrels.txt")},
    }


def write_beir(folder: Path, *splits: str, documents: int = 40) -> Path:
    """A collection in BEIR's layout whose query i asks for words of document i."""
    (folder / "qrels").mkdir(parents=True)
    texts = [f"{WORDS[i % 11]} {WORDS[i % 7]} number{i}" for i in range(documents)]
    lines = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"_id": f"q{i}", "text": texts[i]} for i in range(documents)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for place, split in enumerate(splits):
        own = range(place, documents, len(splits))
        rows = "".join(f"q{i}\td{i}\t1\n" for i in own)
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return folder


GRID = """
name: tiny
collections:
  tiny-train: {{documents: train/documents.tsv, queries: train/queries.tsv, qrels: train/qrels.txt}}
  tiny-test: {{documents: test/documents.tsv, queries: test/queries.tsv, qrels: test/qrels.txt}}
backbones:
  - {{folder: backbone, label: Tiny}}
teachers:
  lists: {{signal: labels, run: bm25, depth: 10, negatives: 3, add_positives: true}}
objectives: {{{objectives}}}
seeds: [1]
training:
  {{collection: tiny-train, steps: {steps}, warmup_steps: 2, lr: 1e-3, batch_queries: 2,
   engine: plain, query_tokens: 4, document_tokens: 24, checkpoint_every_steps: 20}}
evaluation: {{collections: tiny-test, first_stage: bm25, depth: 5, measures: [nDCG@10, RR@10]}}
"""


def teach_and_evaluate(
    folder: Path, collection: dict, model: dict, depth: int
) -> tuple[dict, dict]:
    """Runs of a teach job and of an evaluation by a model over BM25's first documents.

    Their results stay in `folder/teach` and `folder/evaluate`.
    """
    from xsweep.evaluator.data.trec import read_run
    from xsweep.evaluator.jobs import run_job

    jobs = {
        "prepare": {"type": "candidates", "collection": collection, "depth": depth},
        "teach": {"collection": collection, "model": model},
        "evaluate": {"collection": collection, "scorer": {"type": "model", "model": model}},
    }
    for kind, spec in jobs.items():
        (folder / kind).mkdir()
        inputs = {} if kind == "prepare" else {"candidates": folder / "prepare"}
        run_job(kind, spec, inputs, folder / kind)
    return read_run(folder / "teach/scores.run.gz"), read_run(folder / "evaluate/run.trec.gz")


def write_study(
    folder: Path, *, steps: int = 4, objectives: tuple[str, ...] = ("infonce", "bce")
) -> Path:
    """A grid file over files beside it: a training per objective, and one evaluation more."""
    write_backbone(folder / "backbone")
    write_collection(folder / "train", seed=3)
    write_collection(folder / "test", seed=4)
    grid = folder / "tiny.yaml"
    entries = ", ".join(f"{name}: {{teachers: lists}}" for name in objectives)
    grid.write_text(GRID.format(steps=steps, objectives=entries))
    return grid
