"""Sizes of published models and collections, and of those on this machine."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from xsweep.db.jobs import NewJob
from xsweep.errors import DataError
from xsweep.evaluator.data.files import parquet_files, read_lines
from xsweep.evaluator.data.irds import sources
from xsweep.evaluator.data.suites import Size, size
from xsweep.evaluator.models.files import configs
from xsweep.evaluator.specs import HUB, FileSpec, IrdsSpec


class Shape(NamedTuple):
    """The architecture of an encoder."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    gated: bool = False
    """The feed-forward part has a gate and so half as many weights again (ModernBERT)."""
    slowdown: float = 1.0
    """Time of a layer relative to plain attention (DeBERTa's relative positions)."""

    @property
    def layer_parameters(self) -> int:
        """Weights of the layers: 12 x 7,077,888 for BERT-Base."""
        feed_forward = (3 if self.gated else 2) * self.hidden * self.intermediate
        return self.layers * (4 * self.hidden**2 + feed_forward)

    @property
    def parameters(self) -> int:
        """Weights of layers and embeddings, without biases, norms, positions and heads (1%)."""
        return self.layer_parameters + self.vocabulary * self.hidden

    def token_flops(self, length: int) -> float:
        """Floating-point operations of one token's forward pass; `length` is the sequence's."""
        attention = 4 * self.layers * self.hidden * length
        return self.slowdown * (2 * self.layer_parameters + attention)


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
    "microsoft/deberta-v3-base": Shape(12, 768, 3072, 128_100, slowdown=1.6),
    "naver/splade-v3-distilbert": Shape(6, 768, 3072, 30_522),
    "Qwen/Qwen3-Reranker-0.6B": Shape(28, 1024, 3072, 151_669, gated=True),
    "Qwen/Qwen3-Reranker-4B": Shape(36, 2560, 9728, 151_669, gated=True),
    "Qwen/Qwen3-Reranker-8B": Shape(36, 4096, 12_288, 151_669, gated=True),
    "mixedbread-ai/mxbai-rerank-base-v2": Shape(24, 896, 4864, 151_936, gated=True),
    "mixedbread-ai/mxbai-rerank-large-v2": Shape(28, 1536, 8960, 151_936, gated=True),
    "BAAI/bge-reranker-v2-gemma": Shape(18, 2048, 16_384, 256_000, gated=True),
}
"""Published configurations; heads that share keys are counted as if they did not."""


def shape_of(model: Mapping[str, Any]) -> tuple[Shape, bool]:
    """The shape of a model, and whether it is known; unknown models count as BERT-Base."""
    found = KNOWN.get(model.get("id") or "")
    found = found or _installed(
        *(model.get(key) for key in ("folder", "package", "id", "revision"))
    )
    shape = found or BERT_BASE
    if model.get("layers"):
        shape = shape._replace(layers=min(shape.layers, model["layers"]))
    return shape, found is not None


@cache
def _installed(
    folder: str | None, package: str | None, model: str | None, revision: str | None
) -> Shape | None:
    """The shape by the first `config.json` of a model on this machine that gives one."""
    place = {"folder": folder, "package": package, "id": model, "revision": revision}
    for path in configs(place):
        try:
            config = json.loads(path.read_text())
            return Shape(
                config["num_hidden_layers"],
                config["hidden_size"],
                config["intermediate_size"],
                config["vocab_size"],
                gated=config["model_type"] == "modernbert" or config.get("hidden_act") == "silu",
            )
        except (OSError, ValueError, KeyError):
            continue
    return None


SAMPLED_DOCUMENTS = 500
"""Documents of a file whose mean length is taken for all."""

_APIDOCS = {"train": 2_756, "validation": 167, "test": 413}

UNKNOWN = Size(200, 100_000, 100)
"""Assumed size of an unknown collection."""


def size_of(collection: Mapping[str, Any]) -> tuple[Size, bool]:
    """The size of a collection, and whether it is known; local files are counted and sampled."""
    match collection["source"]:
        case "apidocs":
            return Size(_APIDOCS[collection["split"]], 3_336, 60), True
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
        case "parquet":
            found = PARQUET.get(re.sub("@[0-9a-f]+/", "/", collection["file"]["path"]))
            return found or UNKNOWN, found is not None
    return UNKNOWN, False


@cache
def _sampled(documents: Path, qrels: Path) -> tuple[Size, bool]:
    count = words = 0
    try:
        queries = {line.split(maxsplit=1)[0] for line in read_lines(qrels) if line.strip()}
        for count, line in enumerate(read_lines(documents), 1):
            if count <= SAMPLED_DOCUMENTS:
                words += len(line.decode(errors="replace").split()) - 1
    except DataError:
        return UNKNOWN, False
    return Size(len(queries), count, words / min(count, SAMPLED_DOCUMENTS)), True


ETTIN = f"{HUB}cross-encoder/ettin-reranker-v1-data"
PARQUET = {
    f"{ETTIN}/*/train-*.parquet": Size(143_393_475, 286_786_950, 110),
    f"{ETTIN}/rerank_msmarco/train-*.parquet": Size(502_939, 2 * 64 * 502_939, 56),
}
"""Published Parquet files with their texts, queries among the documents; words are a document's."""
RUN_QUERIES = {"c37b78874d4893a00566ab40aa453c56": 10_000}
"""Queries of published runs by MD5, where they are fewer than the collection's."""

FILE_BYTES = {
    "4d99696386f96a7f1631076bcc53ac3c": 1.8e9,
    "a2575af08a19b47c2041e67c9efcd917": 1.8e9,
    "6ed152027f7270f32fcbfaaa6def951e": 3.5e8,
    "c37b78874d4893a00566ab40aa453c56": 3.5e7,
}
"""Sizes of published files by MD5: 40M lines of 46 bytes; 10,000 queries of 500 or 50 lines of 70
bytes."""


HOW_HUB = "fetched from huggingface.co"


class Download(NamedTuple):
    """A data set, file or model that jobs read and that is not on this machine."""

    name: str
    size_bytes: float | None
    how: str


def downloads(jobs: Iterable[NewJob]) -> list[Download]:
    """Everything that the jobs read and that is missing here, the largest first."""
    blocks = {repr(block): block for job in jobs for block in mappings_in(job.spec)}
    found: dict[str, Download] = {}
    for block in blocks.values():
        for each in _missing(block):
            found.setdefault(each.name, each)
    return sorted(found.values(), key=lambda each: (-(each.size_bytes or 0), each.name))


def mappings_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside a JSON value, such as the specs inside a job's spec."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from mappings_in(item)


def _missing(block: Mapping[str, Any]) -> Iterator[Download]:
    if block.get("source") == "irds":
        try:
            missing = [each for each in sources(IrdsSpec(**block)) if not each.present]
            yield from (Download(str(each.path), each.size_bytes, each.how) for each in missing)
        except DataError as problem:
            yield Download(block["id"], None, str(problem))
    elif block.get("type") == "docpairs":
        yield Download(f"docpairs of {block['id']}", 1.84e9, "fetched by ir_datasets")
    elif block.keys() == FileSpec.model_fields.keys() and not _exists(block["path"]):
        size_bytes = FILE_BYTES.get(block["md5"] or block["path"])
        how = "put it there; its checksum is verified"
        yield Download(block["path"], size_bytes, HOW_HUB if block["path"].startswith(HUB) else how)
    elif block.get("id") and "layers" in block and not configs(block):
        shape, known = shape_of(block)
        size_bytes = 4.0 * shape.parameters if known else None
        yield Download(block["id"], size_bytes, HOW_HUB)


def _exists(path: str) -> bool:
    return any(file.exists() for file in parquet_files(Path(path)))
