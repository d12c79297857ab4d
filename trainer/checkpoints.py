"""Checkpoints: everything that the rest of a training depends on, in one folder for each.

`step-N/` holds `weights.safetensors`, `moments.safetensors` (AdamW's), `best.safetensors` (the
weights with the best validation so far) and `progress.json`, closed by a manifest with
checksums. No pickle. No random state is kept: all chance is a function of (seed, step).
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluator.files import atomic_write
from evaluator.manifest import is_finished, read_manifest, write_manifest
from trainer.writing import writing
from xsweep import DataError

KEEP = 2
PARTS = ("weights", "moments", "best")

Weights = dict[str, Tensor]


class Checkpoint(NamedTuple):
    """The state after `progress["step"]` steps."""

    weights: Weights
    moments: Weights
    best: Weights
    progress: dict


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `folder/step-N` so that it appears whole or not at all; the last two stay.

    Raises SetupError where the disk is full or refuses; earlier checkpoints stay as they are.
    """
    path = folder / f"step-{checkpoint.progress['step']}"
    with writing(path), atomic_write(path) as draft:
        _write(draft, checkpoint)
        if path.exists():
            shutil.rmtree(path)
    for old in list_checkpoints([folder])[KEEP:]:
        shutil.rmtree(old)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    folder.mkdir()
    for part in PARTS:
        tensors = {key: tensor.contiguous() for key, tensor in getattr(checkpoint, part).items()}
        save_file(tensors, folder / f"{part}.safetensors")
    (folder / "progress.json").write_text(json.dumps(checkpoint.progress) + "\n")
    write_manifest(folder)


def list_checkpoints(folders: Iterable[Path]) -> list[Path]:
    """Closed checkpoints below some folders, the furthest first."""
    found = (path for folder in folders for path in folder.glob("step-*") if is_finished(path))
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def load_newest(folders: Iterable[Path]) -> Checkpoint | None:
    """The furthest checkpoint whose checksums hold; None where there is none."""
    for folder in list_checkpoints(folders):
        try:
            read_manifest(folder)
        except DataError:
            # A damaged one costs the steps since the one before, not the training.
            continue
        parts = {name: load_file(folder / f"{name}.safetensors") for name in PARTS}
        return Checkpoint(**parts, progress=json.loads((folder / "progress.json").read_text()))
    return None
