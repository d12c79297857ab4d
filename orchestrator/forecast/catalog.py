"""Shapes of encoders: what a token costs, and how many parameters there are.

How many queries and documents a collection has, and how long its documents are.
"""

import gzip
import importlib.util
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from xsweep.evaluator.data.suites import Size, size


class Shape(NamedTuple):
    """An encoder's sizes."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    gated: bool = False
    """Whether the feed-forward part has a gate, half as many weights again (ModernBERT)."""
    slower: float = 1.0
    """Time of a layer against plain attention of this shape (DeBERTa's relative positions)."""

    @property
    def layer_parameters(self) -> int:
        """Weights that every token is multiplied by: 12 x 7,077,888 for BERT-Base."""
        feed_forward = (3 if self.gated else 2) * self.hidden * self.intermediate
        return self.layers * (4 * self.hidden**2 + feed_forward)

    @property
    def parameters(self) -> int:
        """With the embeddings; biases, norms, positions and heads (1%) are left out."""
        return self.layer_parameters + self.vocabulary * self.hidden

    def token_flops(self, length: int) -> float:
        """Floating-point operations of one token's forward pass in a sequence of this length."""
        attention = 4 * self.layers * self.hidden * length
        return self.slower * (2 * self.layer_parameters + attention)


BERT_BASE = Shape(12, 768, 3072, 30_522)


KNOWN = {
    "jhu-clsp/ettin-encoder-17m": Shape(7, 256, 384, 50_368, gated=True),
    "jhu-clsp/ettin-encoder-32m": Shape(10, 384, 576, 50_368, gated=True),
    "jhu-clsp/ettin-encoder-68m": Shape(19, 512, 768, 50_368, gated=True),
    "jhu-clsp/ettin-encoder-150m": Shape(22, 768, 1152, 50_368, gated=True),
    "jhu-clsp/ettin-encoder-400m": Shape(28, 1024, 2624, 50_368, gated=True),
    "jhu-clsp/ettin-encoder-1b": Shape(28, 1792, 3840, 50_368, gated=True),
    "answerdotai/ModernBERT-base": Shape(22, 768, 1152, 50_368, gated=True),
    "microsoft/MiniLM-L12-H384-uncased": Shape(12, 384, 1536, 30_522),
    "bert-base-uncased": BERT_BASE,
    "google/electra-base-discriminator": BERT_BASE,
    "FacebookAI/roberta-base": Shape(12, 768, 3072, 50_265),
    "microsoft/deberta-v3-base": Shape(12, 768, 3072, 128_100, slower=1.6),
    "naver/splade-v3-distilbert": Shape(6, 768, 3072, 30_522),
}
"""Published configurations of the study's models."""


def shape_of(model: Mapping[str, Any]) -> tuple[Shape, bool]:
    """The shape of a model's spec, and whether it is known or taken to be BERT-Base's."""
    found = KNOWN.get(model.get("id") or "") or _installed(model)
    shape = found or BERT_BASE
    if model.get("layers"):
        shape = shape._replace(layers=min(shape.layers, model["layers"]))
    return shape, found is not None


def _installed(model: Mapping[str, Any]) -> Shape | None:
    """From the config.json of a folder or of a package, where there is one here."""
    folder = Path(model["folder"]) if model.get("folder") else None
    if model.get("package"):
        found = importlib.util.find_spec(model["package"].replace("-", "_"))
        places = list(found.submodule_search_locations or ()) if found else []
        folder = Path(places[0]) if places else None
    if folder is None:
        return None
    for path in sorted(folder.rglob("config.json"), key=lambda path: len(path.parts)):
        try:
            config = json.loads(path.read_text())
            return Shape(
                config["num_hidden_layers"],
                config["hidden_size"],
                config["intermediate_size"],
                config["vocab_size"],
                gated=config.get("model_type") == "modernbert",
            )
        except (OSError, ValueError, KeyError):
            continue
    return None


SAMPLE = 500


QUERY_TOKENS = 10
"""Of a question as people type it."""


_APIDOCS = {"train": 2_976, "validation": 164, "test": 236}


UNKNOWN = Size(200, 100_000, 100)
"""Taken for a collection of which nothing is known."""


def size_of(collection: Mapping[str, Any]) -> tuple[Size, bool]:
    """The size of a collection's spec, and whether it is known; files that are here are sampled."""
    match collection["source"]:
        case "apidocs":
            return Size(_APIDOCS[collection["split"]], 3_376, 60), True
        case "irds":
            if found := size(collection["id"]):
                return found, True
        case "files":
            return _sampled(*(Path(collection[key]["path"]) for key in ("documents", "qrels")))
        case "folder":
            folder = Path(collection["path"])
            corpus = next(iter(sorted(folder.glob("corpus.jsonl*"))), folder / "corpus.jsonl")
            split = f"{collection['split']}.tsv"
            return _sampled(corpus, folder / "qrels" / split)
    return UNKNOWN, False


def _sampled(documents: Path, qrels: Path) -> tuple[Size, bool]:
    try:
        first = list(islice(_lines(documents), SAMPLE))
        queries = {line.split(maxsplit=1)[0] for line in _lines(qrels) if line.strip()}
        count = sum(1 for _ in _lines(documents))
    except (OSError, EOFError):
        return UNKNOWN, False
    words = sum(len(line.split()) - 1 for line in first) / max(1, len(first))
    return Size(len(queries), count, words), True


def _lines(path: Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", errors="replace") as file:
        yield from file
