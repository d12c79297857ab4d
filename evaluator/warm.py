"""The cross-encoder that this process has loaded last: evaluations of one model follow each other.

One is kept, not several: a card holds one model beside its batches. Scoring leaves weights alone,
so that the next evaluation gets what a fresh one would.
"""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from evaluator.cross_encoder import load_cross_encoder
from evaluator.specs import ModelSpec
from evaluator.tokenizers import locate

_latest: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerFast]] = {}


def load_warm(spec: ModelSpec) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """`load_cross_encoder(spec)`, or what it gave the last time where the files are the same."""
    key = f"{spec.model_dump_json()} {_state(Path(locate(spec)))}"
    if key not in _latest:
        _latest.clear()  # before loading: there may not be room for both
        _latest[key] = load_cross_encoder(spec)
    return _latest[key]


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of each file; nothing for a model that is no folder."""
    files = sorted(folder.glob("*")) if folder.is_dir() else []
    stats = [(path.name, path.stat()) for path in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
