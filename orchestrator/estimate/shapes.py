"""Shapes of encoders: what a token costs, and how many parameters there are."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


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
