"""Bytes: GPU memory of a training, disk for what a sweep keeps, and what it has to download."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.estimate.shapes import shape_of
from orchestrator.estimate.sizes import TOKENS_PER_WORD, size_of
from orchestrator.settings import KINDS

if TYPE_CHECKING:
    from db.jobs import NewJob

STATE_BYTES = 16
"""Of a parameter: fp32 weight, gradient and AdamW's two moments."""
ACTIVATION_BYTES = 34
"""Of a token, a layer and a hidden unit in bf16: Korthikanti et al. 2022, eq. 1, without the
attention matrix (https://arxiv.org/abs/2205.05198); twice as many in fp32."""
CONTEXT_BYTES = 1e9
"""CUDA's own, and what its allocator loses."""
RUN_LINE_BYTES = 14
"""Of a line of a TREC run, gzipped."""
FILE_SIZES = {
    "4d99696386f96a7f1631076bcc53ac3c": 1.8e9,
    "a2575af08a19b47c2041e67c9efcd917": 1.8e9,
    "6ed152027f7270f32fcbfaaa6def951e": 3.5e8,
    "c37b78874d4893a00566ab40aa453c56": 3.5e7,
}
"""By md5, from lines: 40M of 46 bytes; 10,000 queries with 500 and 50 lines of 70 bytes."""


class Download(NamedTuple):
    """Something that jobs read and that is not here."""

    name: str
    size_bytes: float | None
    how: str


def gpu_memory_bytes(spec: Mapping[str, Any]) -> float:
    """Memory of a training, at most: states of all parameters and one backward pass.

    BERT-Base in bf16 with 16,384 tokens a pass: 108M x 16 + 16,384 x 12 x 768 x 34 bytes and 1 GB
    are 7.9 GB.
    """
    shape, _ = shape_of(spec["backbone"])
    how = spec["optimisation"]
    width = ACTIVATION_BYTES * (1 if how["precision"] == "bf16" else 2)
    kept = 2 if how["gradient_checkpointing"] else shape.layers
    activations = how["micro_batch_tokens"] * kept * shape.hidden * width
    return shape.parameters * STATE_BYTES + activations + CONTEXT_BYTES


def disk_bytes(jobs: "Iterable[NewJob]") -> dict[str, float]:
    """What the store keeps when all is done, by kind of job."""
    found = dict.fromkeys(KINDS, 0.0)
    for job in jobs:
        found[job.kind] += _kept_bytes(job.kind, job.spec)
    return found


def _kept_bytes(kind: str, spec: Mapping[str, Any]) -> float:
    if kind == "train":
        return 4.0 * shape_of(spec["backbone"])[0].parameters
    if kind == "search":
        return 0.0  # the winner's files, under a second name
    size, _ = size_of(spec["documents" if spec.get("type") == "tokens" else "collection"])
    if spec.get("type") == "tokens":
        shape, _ = shape_of(spec["tokenizer"])
        tokens = min(size.words * TOKENS_PER_WORD, float(spec["max_tokens"]))
        return size.documents * tokens * (2 if shape.vocabulary <= 65_536 else 4)
    depth = min(spec.get("depth") or 1000, size.documents)
    return float(RUN_LINE_BYTES * size.queries * depth)


def downloads(jobs: "Iterable[NewJob]") -> list[Download]:
    """Data sets, files and models that are not on this machine, each once."""
    found: dict[str, Download] = {}
    looked_at: set[str] = set()
    for job in jobs:
        for block in blocks(job.spec):
            # The same few blocks stand in thousands of jobs.
            if (key := repr(block)) in looked_at:
                continue
            looked_at.add(key)
            for each in _missing(block):
                found.setdefault(each.name, each)
    return sorted(found.values(), key=lambda each: (-(each.size_bytes or 0), each.name))


def _missing(block: Mapping[str, Any]) -> Iterator[Download]:
    if block.get("source") == "irds":
        yield from _of_dataset(block)
    elif block.get("type") == "docpairs":
        yield Download(f"docpairs of {block['id']}", 1.84e9, "fetched by ir_datasets")
    elif block.keys() == {"path", "md5", "sha256"} and not Path(block["path"]).exists():
        size = FILE_SIZES.get(block["md5"] or "")
        yield Download(block["path"], size, "put it there; its checksum is verified")
    elif block.get("id") and "layers" in block and not _in_cache(block["id"]):
        shape, known = shape_of(block)
        size = 4.0 * shape.parameters if known else None
        yield Download(block["id"], size, "fetched from huggingface.co")


def _of_dataset(block: Mapping[str, Any]) -> Iterator[Download]:
    from evaluator.downloads import sources
    from evaluator.specs import IrdsSpec
    from xsweep import DataError

    try:
        for source in sources(IrdsSpec(**block)):
            if not source.present:
                yield Download(str(source.path), source.size_bytes, source.how)
    except DataError as problem:
        yield Download(block["id"], None, str(problem))


def _in_cache(model: str) -> bool:
    """Whether a model of Hugging Face lies in its usual cache."""
    import os

    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    return (hub / f"models--{model.replace('/', '--')}").is_dir()


def blocks(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings inside a JSON value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from blocks(item)
